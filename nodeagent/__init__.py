"""nodeagent: reload a NIC driver and put the node's SR-IOV configuration back, proven."""

__version__ = "0.2.0"
