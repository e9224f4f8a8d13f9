/* The two entries, and every table the processor needs, written by the assembler.
 *
 * start32: PVH (xen/include/public/arch-x86/hvm/start_info.h): 32-bit protected mode, paging off, ebx = start_info.
 * start64: the Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst): long mode, low memory identity-mapped,
 *          CS = 0x10, data segments 0x18, rsi = boot_params.
 *
 * There is not one loop here and nothing is copied: on a KVM without hardware support each of these instructions
 * is interpreted, at half a microsecond. BSS is zero because both loaders must zero it.
 */
#include "machine.h"

/* ELF note that tells a PVH loader where to enter: name "Xen", type 18 = XEN_ELFNOTE_PHYS32_ENTRY. */
    .section .note.pvh, "a", @note
    .balign 4
    .long 4                             # n_namesz: "Xen" and its NUL
    .long 4                             # n_descsz
    .long 18                            # n_type
    .asciz "Xen"
    .long start32                       # a physical address: .boot is linked at where it is loaded

    .section .boot, "ax"
    .code32
    .globl start32
start32:
    mov  $CR4_PAE, %eax                 # long mode needs physical address extension
    mov  %eax, %cr4                     # CR4 = PAE only
    mov  $boot_pml4 - KERNEL_BASE, %eax # physical address of the root table
    mov  %eax, %cr3                     # the root is set; paging still off
    mov  $MSR_EFER, %ecx                # the register rdmsr/wrmsr shall use
    mov  $EFER_LME, %eax                # long mode enable, low half
    xor  %edx, %edx                     # high half is zero
    wrmsr                               # EFER.LME = 1, not yet active
    mov  $CR0_BOOT, %eax                # protected mode, write protect, paging
    mov  %eax, %cr0                     # EFER.LMA = 1: compatibility mode, identity-mapped
    lgdt gdt_pointer_low                # our GDT, by its low address
    mov  %ebx, %esi                     # second argument of kernel_start: start_info
    mov  $BOOT_PVH, %edi                # first argument: how we came
    ljmp $KERNEL_CS, $enter64           # CS.L = 1: 64-bit mode
    .code64
enter64:
    mov  $KERNEL_DS, %eax               # a flat data segment
    mov  %eax, %ss                      # SS must be valid before an interrupt returns to ring 0
    mov  %eax, %ds                      # DS, ES, FS, GS: bases are ignored or zero in 64-bit mode,
    mov  %eax, %es                      # but a stale selector would fault when saved and restored
    mov  %eax, %fs
    mov  %eax, %gs
    jmp  go_high                        # tables are already ours

    .globl start64
start64:
    mov  $boot_pml4 - KERNEL_BASE, %eax # zero-extended: physical address of the root table
    mov  %rax, %cr3                     # our tables; this code stays identity-mapped
    lgdt gdt_pointer_low                # our GDT; the loader's selectors mean the same in it
    mov  $BOOT_LINUX64, %edi            # first argument of kernel_start; rsi is already boot_params
go_high:
    mov  $high, %rax                    # sign-extended: an address in the kernel half
    jmp  *%rax                          # from here the low half is not used any more

    .balign 8
gdt_pointer_low:
    .word gdt_end - gdt - 1             # limit
    .quad GDT_ADDRESS - KERNEL_BASE     # base: read in 32-bit mode, where only the low half counts

    .section .text.start, "ax"
high:
    lgdt gdt_pointer                    # the same GDT by its high address: spaces without a low half need it
    lidt idt_pointer                    # exceptions are caught from here on
    mov  $TSS_SELECTOR, %eax
    ltr  %ax                            # rsp0 and the interrupt stacks are known
    mov  $kernel_stack_top, %rsp        # the stack grows down from its 16-byte-aligned top
    xor  %ebp, %ebp                     # frame chains end here
    call kernel_start                   # kernel_start(protocol, info): never returns
    ud2                                 # so that a return would be a panic

    .section .tables, "aw"
gdt:                                    # GDT_ADDRESS; SDM 3.4.5. Base 0 and limit 4 GiB everywhere
    .quad 0                             # 0x00 null
    .quad 0x00cf9b000000ffff            # 0x08 KERNEL32_CS: code, ring 0, 32 bit
    .quad 0x00af9b000000ffff            # 0x10 KERNEL_CS:   code, ring 0, 64 bit
    .quad 0x00cf93000000ffff            # 0x18 KERNEL_DS:   data, ring 0
    .quad 0x00cffb000000ffff            # 0x23 USER32_CS:   code, ring 3, 32 bit
    .quad 0x00cff3000000ffff            # 0x2b USER_DS:     data, ring 3
    .quad 0x00affb000000ffff            # 0x33 USER_CS:     code, ring 3, 64 bit
    /* 0x38: the TSS, 16 bytes (SDM 7.2.3): limit 15:0, base 23:0, type 9 present, base 31:24, base 63:32 */
    .quad (tss_end - tss - 1) + ((TSS_ADDRESS & 0xffffff) << 16) + (0x89 << 40) + (((TSS_ADDRESS >> 24) & 0xff) << 56)
    .quad (TSS_ADDRESS >> 32) & 0xffffffff
gdt_end:

    .org 0x80                           # TSS_ADDRESS; SDM 7.7
tss:
    .long 0
    .quad trap_stack_top                # RSP0: the stack of a trap from ring 3
    .quad 0, 0                          # RSP1, RSP2: rings not used
    .quad 0
    .quad fault_stack_top               # IST1: NMI, double fault, machine check; their stack is always good
    .quad 0, 0, 0, 0, 0, 0              # IST2 .. IST7
    .quad 0
    .word 0
    .word tss_end - tss                 # I/O map beyond the limit: ring 3 has no ports
tss_end:

gdt_pointer:
    .word gdt_end - gdt - 1
    .quad GDT_ADDRESS
idt_pointer:
    .word 256 * 16 - 1
    .quad idt

/* One interrupt gate for each vector (SDM 6.14.1): to its stub, ring 0, IF cleared on entry.
 * Ring 3 may use vectors 3 (int3) and 0x80 (system call) on purpose. */
    .balign 4096
idt:
    .set vector, 0
    .rept 256
    .set stub, TRAP_STUBS + vector * TRAP_STUB_SIZE
    .set dpl, 0
    .set ist, 0
    .if vector == VECTOR_BP || vector == VECTOR_SYSCALL
    .set dpl, 3
    .endif
    .if vector == VECTOR_NMI || vector == VECTOR_DF || vector == VECTOR_MC
    .set ist, 1
    .endif
    .word stub & 0xffff                 # offset 15:0
    .word KERNEL_CS
    .byte ist
    .byte 0x8e | dpl << 5               # present, DPL, 64-bit interrupt gate
    .word (stub >> 16) & 0xffff         # offset 31:16
    .long (stub >> 32) & 0xffffffff     # offset 63:32
    .long 0
    .set vector, vector + 1
    .endr

/* Page tables (SDM 4.5), complete. The root also maps low memory at its own address: the entries above, and the
 * processors started later, pass through there. */
    .globl boot_pml4
boot_pml4:
    .quad boot_pdpt_low + (PTE_P | PTE_W) - KERNEL_BASE
    .fill 510, 8, 0
    .quad boot_pdpt_high + (PTE_P | PTE_W) - KERNEL_BASE
    .globl boot_pdpt_high
boot_pdpt_high:
    .fill 510, 8, 0
    .quad boot_pd_ram + (PTE_P | PTE_W) - KERNEL_BASE       # KERNEL_BASE: physical 0 .. 1 GiB
    .quad boot_pd_devices + (PTE_P | PTE_W) - KERNEL_BASE   # DEVICE_BASE: physical 3 .. 4 GiB
boot_pdpt_low:
    .quad boot_pd_ram + (PTE_P | PTE_W) - KERNEL_BASE       # 0: the same gigabyte
    .fill 511, 8, 0
boot_pd_ram:
    .set page, 0
    .rept 512
    .quad page * 0x200000 + (PTE_P | PTE_W | PTE_PS)
    .set page, page + 1
    .endr
boot_pd_devices:                        # uncached: device registers
    .set page, 0
    .rept 512
    .quad DEVICE_PHYSICAL + page * 0x200000 + (PTE_P | PTE_W | PTE_PS | PTE_PCD | PTE_PWT)
    .set page, page + 1
    .endr

    .section .bss.stacks, "aw", @nobits
    .balign 16
    .skip STACK_SIZE
    .globl kernel_stack_top
kernel_stack_top:                       # the kernel's own work
    .skip STACK_SIZE
    .globl trap_stack_top
trap_stack_top:                         # traps and system calls from ring 3
    .skip 4096
fault_stack_top:                        # IST1
