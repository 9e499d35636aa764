"""The SR-IOV state of a node as a value: model, plan, and the node that is read and written."""
