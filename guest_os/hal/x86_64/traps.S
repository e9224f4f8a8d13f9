/* Trap entry: one 16-byte stub a vector, one common path. */
#include "frame.h"
#include "machine.h"

/* A stub makes every vector leave the same frame: the processor pushes an error code for some vectors only
 * (SDM 6.13), so the others push a zero in its place. The linker script puts the stubs at TRAP_STUBS. */
    .section .stubs, "ax"
    .set vector, 0
    .rept 256
    .balign TRAP_STUB_SIZE
    .if vector == VECTOR_BP
    jmp  breakpoint_entry               # user.S
    .elseif vector == VECTOR_DE
    jmp  divide_entry                   # user.S
    .elseif vector == VECTOR_PF
    jmp  page_fault_entry               # user.S
    .elseif vector >= VECTOR_IRQ && vector != VECTOR_SYSCALL
    push $vector - 256                  # what is read of it is the low byte
    jmp  interrupt_common
    .else
    .if !HAS_ERROR_CODE(vector)
    push $0                             # no error code: a zero where it would be
    .endif
    push $vector - 256                  # what is read of it is the low byte
    jmp  trap_common
    .endif
    .set vector, vector + 1
    .endr
    .balign TRAP_STUB_SIZE

/* A device's or our own interrupt: interrupt_handle(vector) needs nothing of what was interrupted, so only the
 * registers a C function may change are kept. 15 words: 8 bytes off the ABI's alignment, which only vector instructions
 * would mind, and the kernel has none. */
    .section .text.traps, "ax"
interrupt_common:                       # the stack: vector rip cs rflags rsp ss
    push_changed                        # the nine registers a C function may change
    movzbl CHANGED_SIZE(%rsp), %edi     # first argument: the vector, below the nine registers
    cld                                 # the C ABI wants DF clear; iretq brings the old one back
    call interrupt_handle
    pop_changed
    add  $8, %rsp                       # the vector goes; rip is on top
    iretq                               # back to what was interrupted

/* The stack at trap_handle(), struct registers (registers.h), from rsp up:
 *   r15 r14 r13 r12 r11 r10 r9 r8 rbp rdi rsi rdx rcx rbx rax | vector error | rip cs rflags rsp ss
 *   push_registers                                            | the stub     | the processor        */
    .section .text.traps, "ax"
    .globl trap_common
trap_common:                            # the stack: vector error rip cs rflags rsp ss
    push_registers                      # struct registers is complete, rsp points to it
    cld                                 # the C ABI wants DF clear; iretq brings the old one back
    mov  %rsp, %rdi                     # first argument: the registers
    call trap_handle                    # the processor aligned the frame: 22 words, so rsp is 16-aligned here
    pop_registers                       # as trap_handle left them
    add  $16, %rsp                      # vector and error code go; rip is on top
    iretq                               # back to what was interrupted
