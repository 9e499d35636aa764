// SPDX-License-Identifier: GPL-2.0
/*
 * An RDMA device for each PCI function that is bound to mlx5_core, as mlx5_ib makes one: it lies on
 * the function, has a uverbs node, and may be in another network namespace than the host's. It
 * carries no data: no context can be had of it.
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <rdma/ib_verbs.h>
#include <rdma/uverbs_ioctl.h>

#define DRIVER "mlx5_core"

struct lab_ib {
	struct ib_device ibdev; /* ib_alloc_device() wants it to be the first */
	struct list_head list;
	struct pci_dev *function;
};

struct lab_context {
	struct ib_ucontext ibucontext;
};

static LIST_HEAD(devices);
static DEFINE_MUTEX(lock);

static int query_device(struct ib_device *ibdev, struct ib_device_attr *attr, struct ib_udata *udata)
{
	memset(attr, 0, sizeof(*attr));
	return 0;
}

static int query_port(struct ib_device *ibdev, u32 port, struct ib_port_attr *attr)
{
	attr->state = IB_PORT_ACTIVE;
	attr->phys_state = IB_PORT_PHYS_STATE_LINK_UP;
	return 0;
}

static int get_port_immutable(struct ib_device *ibdev, u32 port, struct ib_port_immutable *immutable)
{
	immutable->core_cap_flags = RDMA_CORE_PORT_USNIC; /* neither MADs nor GIDs */
	return 0;
}

static int alloc_ucontext(struct ib_ucontext *context, struct ib_udata *udata)
{
	return -EOPNOTSUPP;
}

static void dealloc_ucontext(struct ib_ucontext *context)
{
}

/* What has none can't go to another namespace (ib_device_set_netns_put()). */
static void disassociate_ucontext(struct ib_ucontext *context)
{
}

static const struct ib_device_ops lab_ops = {
	.owner = THIS_MODULE,
	.driver_id = RDMA_DRIVER_UNKNOWN,
	.uverbs_abi_ver = 1,
	.query_device = query_device,
	.query_port = query_port,
	.get_port_immutable = get_port_immutable,
	.alloc_ucontext = alloc_ucontext,
	.dealloc_ucontext = dealloc_ucontext,
	.disassociate_ucontext = disassociate_ucontext,
	INIT_RDMA_OBJ_SIZE(ib_ucontext, lab_context, ibucontext),
};

static void add(struct pci_dev *function)
{
	struct lab_ib *made = ib_alloc_device(lab_ib, ibdev);
	int error;

	if (!made)
		return;
	made->function = function;
	made->ibdev.node_type = RDMA_NODE_IB_CA;
	made->ibdev.phys_port_cnt = 1;
	made->ibdev.num_comp_vectors = 1;
	made->ibdev.dev.parent = &function->dev;
	ib_set_device_ops(&made->ibdev, &lab_ops);
	error = ib_register_device(&made->ibdev, "mlx5_%d", &function->dev);
	if (error) {
		pci_err(function, "lab_ib: no RDMA device: %d\n", error);
		ib_dealloc_device(&made->ibdev);
		return;
	}
	list_add(&made->list, &devices);
}

static void del(struct lab_ib *made)
{
	list_del(&made->list);
	ib_unregister_device(&made->ibdev);
	ib_dealloc_device(&made->ibdev);
}

static struct lab_ib *of(struct pci_dev *function)
{
	struct lab_ib *each;

	list_for_each_entry(each, &devices, list)
		if (each->function == function)
			return each;
	return NULL;
}

static bool is_ours(struct pci_dev *function)
{
	return function->driver && !strcmp(function->driver->name, DRIVER);
}

static int bound_or_not(struct notifier_block *block, unsigned long event, void *device)
{
	struct pci_dev *function = to_pci_dev(device);

	mutex_lock(&lock);
	if (event == BUS_NOTIFY_BOUND_DRIVER && is_ours(function) && !of(function))
		add(function);
	if (event == BUS_NOTIFY_UNBIND_DRIVER && of(function))
		del(of(function));
	mutex_unlock(&lock);
	return NOTIFY_OK;
}

static struct notifier_block notifier = { .notifier_call = bound_or_not };

static int __init lab_ib_init(void)
{
	struct pci_dev *function = NULL;
	int error = bus_register_notifier(&pci_bus_type, &notifier);

	if (error)
		return error;
	mutex_lock(&lock);
	for_each_pci_dev(function)
		if (is_ours(function) && !of(function))
			add(function);
	mutex_unlock(&lock);
	return 0;
}

static void __exit lab_ib_exit(void)
{
	struct lab_ib *each, *next;

	bus_unregister_notifier(&pci_bus_type, &notifier);
	list_for_each_entry_safe(each, next, &devices, list)
		del(each);
}

module_init(lab_ib_init);
module_exit(lab_ib_exit);
MODULE_DESCRIPTION("Gives the emulated node's NICs RDMA devices");
MODULE_LICENSE("GPL");
