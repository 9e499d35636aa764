// SPDX-License-Identifier: GPL-2.0
/*
 * Ends interrupts that the emulated local APIC keeps in service for ever, and wakes a timer whose
 * interrupt was lost.
 *
 * Once in some hundred runs QEMU's TCG (seen with 10.0.2, two virtual processors) shows an interrupt
 * as in service that the kernel never handled: `info lapic` of such a node has the timer's vector in
 * ISR and in IRR, every lower vector pending behind it, and a processor that has halted ("rcu:
 * kthread timer wakeup didn't happen"). Nothing but an EOI can end that. Interrupts of a higher class
 * still come through: so each processor asks the next one, by a function call interrupt, whether
 * anything but that call is in service there. Handlers run with interrupts off on x86, and a call's
 * own EOI is written before it runs: whatever is still in service then has no handler.
 *
 * Or the timer has run out, and nothing is pending or in service: either the kernel wants none, or
 * the interrupt never came. A processor without a tick arms it anew only when the next event is
 * another one (kernel/time/tick-sched.c), so it would wait for ever. An interrupt too many does no
 * harm: the kernel looks at its clock, and at what is due.
 */
#include <linux/bits.h>
#include <linux/bitops.h>
#include <linux/cpumask.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/timer.h>

#define APIC_ADDRESS 0xfee00000UL /* of whichever processor looks */
#define APIC_EOI 0xb0
#define APIC_ISR 0x100 /* 8 registers of 32 vectors, 16 bytes apart */
#define APIC_IRR 0x200 /* likewise */
#define APIC_LVTT 0x320
#define APIC_TMICT 0x380 /* writing it starts the timer */
#define APIC_TMCCT 0x390 /* 0: it has run out, or never ran */
#define NOT_ONE_SHOT (BIT(16) | BIT(17) | BIT(18)) /* masked, periodic, by deadline */
#define FIRST_ROW 1 /* 32 vectors of exceptions before it */
#define LAST_ROW 7
#define PERIOD (HZ / 4)
#define AT_MOST 16

static void __iomem *apic;
static DEFINE_PER_CPU(struct timer_list, timer);
static DEFINE_PER_CPU(call_single_data_t, call);

static bool has(int registers, int vector)
{
	return readl(apic + registers + vector / 32 * 0x10) & BIT(vector % 32);
}

static void wake_the_timer(void)
{
	u32 timer = readl(apic + APIC_LVTT);
	int vector = timer & 0xff;

	if (timer & NOT_ONE_SHOT || readl(apic + APIC_TMCCT))
		return;
	if (!has(APIC_IRR, vector) && !has(APIC_ISR, vector))
		writel(1, apic + APIC_TMICT);
}

static void end_what_nobody_handles(void)
{
	int row = LAST_ROW, ended = 0;

	while (row >= FIRST_ROW && ended < AT_MOST) {
		u32 in_service = readl(apic + APIC_ISR + row * 0x10);

		if (!in_service) {
			row--;
			continue;
		}
		writel(0, apic + APIC_EOI);
		ended++;
		pr_err("lab_eoi: processor %d: vector %d was in service without a handler\n",
			smp_processor_id(), row * 32 + fls(in_service) - 1);
	}
}

static void look(void *unused)
{
	end_what_nobody_handles();
	wake_the_timer();
}

static void ask_the_next(struct timer_list *mine)
{
	unsigned int next = cpumask_next(smp_processor_id(), cpu_online_mask);

	if (next >= nr_cpu_ids)
		next = cpumask_first(cpu_online_mask);
	smp_call_function_single_async(next, per_cpu_ptr(&call, next));
	mod_timer(mine, jiffies + PERIOD);
}

static int __init lab_eoi_init(void)
{
	int cpu;

	apic = ioremap(APIC_ADDRESS, PAGE_SIZE);
	if (!apic)
		return -ENOMEM;
	for_each_online_cpu(cpu) {
		struct timer_list *its = per_cpu_ptr(&timer, cpu);

		INIT_CSD(per_cpu_ptr(&call, cpu), look, NULL);
		timer_setup(its, ask_the_next, TIMER_PINNED);
		its->expires = jiffies + PERIOD;
		add_timer_on(its, cpu);
	}
	return 0;
}

/* No exit: it stays as long as the node. */
module_init(lab_eoi_init);
MODULE_DESCRIPTION("Ends interrupts that the emulated APIC keeps in service");
MODULE_LICENSE("GPL");
