/* Xen's public interface, as far as this layer uses it: names, numbers and layouts of xen/include/public/
 * (xen.h, arch-x86/xen.h, arch-x86/xen-x86_64.h, callback.h, event_channel.h, sched.h, vcpu.h, elfnote.h,
 * io/console.h). Written here, because not every host that builds the guests has Xen's headers; a test compares. */
#pragma once

/* Hypercall numbers (xen.h): the entry of the hypercall page, 32 bytes each */
#define __HYPERVISOR_set_trap_table 0
#define __HYPERVISOR_mmu_update 1
#define __HYPERVISOR_stack_switch 3
#define __HYPERVISOR_set_debugreg 8
#define __HYPERVISOR_get_debugreg 9
#define __HYPERVISOR_multicall 13
#define __HYPERVISOR_update_va_mapping 14
#define __HYPERVISOR_xen_version 17
#define __HYPERVISOR_console_io 18
#define __HYPERVISOR_iret 23
#define __HYPERVISOR_vcpu_op 24
#define __HYPERVISOR_mmuext_op 26
#define __HYPERVISOR_sched_op 29
#define __HYPERVISOR_callback_op 30
#define __HYPERVISOR_event_channel_op 32

/* Selectors of the descriptors Xen has for a domain without a GDT of its own (arch-x86/xen-x86_64.h) */
#define FLAT_KERNEL_CS 0xe033
#define FLAT_KERNEL_SS 0xe02b
#define FLAT_USER_CS 0xe033
#define FLAT_USER_SS 0xe02b

/* iret_context.flags and vcpu_guest_context.flags */
#define VGCF_in_kernel (1 << 2)
#define VGCF_in_syscall (1 << 8) /* rcx and r11 are not restored */

#define VCPUOP_down 2

/* ELF notes (elfnote.h) */
#define XEN_ELFNOTE_ENTRY 1
#define XEN_ELFNOTE_HYPERCALL_PAGE 2
#define XEN_ELFNOTE_VIRT_BASE 3
#define XEN_ELFNOTE_PADDR_OFFSET 4
#define XEN_ELFNOTE_XEN_VERSION 5
#define XEN_ELFNOTE_GUEST_OS 6
#define XEN_ELFNOTE_GUEST_VERSION 7
#define XEN_ELFNOTE_LOADER 8
#define XEN_ELFNOTE_PAE_MODE 9
#define XEN_ELFNOTE_FEATURES 10

#ifndef __ASSEMBLER__
#include <stdint.h>

#define DOMID_SELF 0x7FF0U
#define XEN_LEGACY_MAX_VCPUS 32
#define MAX_GUEST_CMDLINE 1024
#define VIRQ_TIMER 0

/* mmu_update: commands in the low bits of .ptr; mmuext_op; update_va_mapping's flags */
#define MMU_NORMAL_PT_UPDATE 0
#define MMUEXT_PIN_L1_TABLE 0
#define MMUEXT_PIN_L4_TABLE 3
#define MMUEXT_UNPIN_TABLE 4
#define MMUEXT_NEW_BASEPTR 5
#define MMUEXT_TLB_FLUSH_LOCAL 6
#define MMUEXT_NEW_USER_BASEPTR 15
#define UVMF_INVLPG 2UL /* of this CPU */

#define CONSOLEIO_write 0

#define CALLBACKOP_register 0
#define CALLBACKTYPE_event 0
#define CALLBACKTYPE_failsafe 1
#define CALLBACKTYPE_syscall 2
#define CALLBACKF_mask_events 1

#define EVTCHNOP_bind_interdomain 0
#define EVTCHNOP_bind_virq 1
#define EVTCHNOP_send 4
#define EVTCHNOP_alloc_unbound 6
#define EVTCHNOP_bind_ipi 7
#define EVTCHNOP_unmask 9

#define SCHEDOP_block 1
#define SCHEDOP_shutdown 2
#define SCHEDOP_poll 3
#define SHUTDOWN_poweroff 0
#define SHUTDOWN_reboot 1
#define SHUTDOWN_crash 3

#define VCPUOP_initialise 0
#define VCPUOP_up 1
#define VCPUOP_is_up 3
#define VCPUOP_set_singleshot_timer 8
#define VCPUOP_stop_singleshot_timer 9

struct start_info {
    char magic[32];
    unsigned long nr_pages;
    unsigned long shared_info; /* machine address */
    uint32_t flags;
    unsigned long store_mfn;
    uint32_t store_evtchn;
    union {
        struct {
            unsigned long mfn;
            uint32_t evtchn;
        } domU;
    } console;
    unsigned long pt_base; /* virtual */
    unsigned long nr_pt_frames;
    unsigned long mfn_list; /* virtual: machine frame number of each pfn */
    unsigned long mod_start;
    unsigned long mod_len;
    int8_t cmd_line[MAX_GUEST_CMDLINE];
    unsigned long first_p2m_pfn;
    unsigned long nr_p2m_frames;
};

struct arch_vcpu_info {
    unsigned long cr2, pad;
};

struct vcpu_time_info {
    uint32_t version; /* odd while Xen writes */
    uint32_t pad0;
    uint64_t tsc_timestamp;
    uint64_t system_time; /* ns at tsc_timestamp */
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags;
    uint8_t pad1[2];
};

struct vcpu_info {
    uint8_t evtchn_upcall_pending;
    uint8_t evtchn_upcall_mask;
    unsigned long evtchn_pending_sel;
    struct arch_vcpu_info arch;
    struct vcpu_time_info time;
};

struct shared_info { /* as far as it is used */
    struct vcpu_info vcpu_info[XEN_LEGACY_MAX_VCPUS];
    unsigned long evtchn_pending[64];
    unsigned long evtchn_mask[64];
};

struct trap_info {
    uint8_t vector;
    uint8_t flags; /* 0 .. 3: the least privileged ring that may raise it on purpose; 4: masks events */
    uint16_t cs;
    unsigned long address;
};

struct mmu_update {
    uint64_t ptr; /* machine address of the entry, and a command */
    uint64_t val;
};

struct mmuext_op {
    unsigned int cmd;
    union {
        unsigned long mfn, linear_addr;
    } arg1;
    union {
        unsigned int nr_ents;
        const void *vcpumask;
    } arg2;
};

struct multicall_entry {
    unsigned long op, result, args[6];
};

struct callback_register {
    uint16_t type, flags;
    unsigned long address;
};

struct evtchn_alloc_unbound {
    uint16_t dom, remote_dom;
    uint32_t port;
};

struct evtchn_bind_interdomain {
    uint16_t remote_dom;
    uint32_t remote_port, local_port;
};

struct evtchn_bind_virq {
    uint32_t virq, vcpu, port;
};

struct evtchn_bind_ipi {
    uint32_t vcpu, port;
};

struct evtchn_send {
    uint32_t port;
};

struct evtchn_unmask {
    uint32_t port;
};

struct sched_shutdown {
    unsigned int reason;
};

struct sched_poll {
    const uint32_t *ports;
    unsigned int nr_ports;
    uint64_t timeout;
};

struct vcpu_set_singleshot_timer {
    uint64_t timeout_abs_ns;
    uint32_t flags;
};

struct cpu_user_regs {
    uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    uint32_t error_code, entry_vector;
    uint64_t rip;
    uint16_t cs, _pad0[1];
    uint8_t saved_upcall_mask, _pad1[3];
    uint64_t rflags, rsp;
    uint16_t ss, _pad2[3], es, _pad3[3], ds, _pad4[3], fs, _pad5[3], gs, _pad6[3];
};

struct vcpu_guest_context {
    struct {
        char x[512];
    } fpu_ctxt;
    unsigned long flags;
    struct cpu_user_regs user_regs;
    struct trap_info trap_ctxt[256];
    unsigned long ldt_base, ldt_ents;
    unsigned long gdt_frames[16], gdt_ents;
    unsigned long kernel_ss, kernel_sp;
    unsigned long ctrlreg[8];
    unsigned long debugreg[8];
    unsigned long event_callback_eip, failsafe_callback_eip, syscall_callback_eip;
    unsigned long vm_assist;
    uint64_t fs_base, gs_base_kernel, gs_base_user;
};

struct xencons_interface {
    char in[1024];
    char out[2048];
    uint32_t in_cons, in_prod;
    uint32_t out_cons, out_prod;
};
#endif
