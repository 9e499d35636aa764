// SPDX-License-Identifier: GPL-2.0
/* A module that depends on the stand-in for mlx5_core, as mlx5_vdpa does on the real one. */
#include <linux/module.h>

int mlx5_lab_use(void);

static int __init holder_init(void)
{
	return mlx5_lab_use();
}

static void __exit holder_exit(void)
{
}

module_init(holder_init);
module_exit(holder_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Holds the emulated node's mlx5_core");
