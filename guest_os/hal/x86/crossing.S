/* Between the kernel and user level: back from a program, and copies out of its memory. */
#include "frame.h"

    .section .text.crossing, "ax"
/* hal_user_leave(rdi = result): back from user_enter(), whatever the trap stack held. */
    .globl hal_user_leave
hal_user_leave:
    mov  %rdi, %rax                     # user_enter()'s return value
    mov  user_return, %rsp              # the stack of user_enter()
    pop_kept
    ret                                 # in the caller of user_enter(), interrupts off

/* hal_copy_from_user(rdi = to, rsi = from, rdx = size): true, or false where the user half does not hold it all.
 * A page fault at one of the two string instructions continues at user_copy_end with al = 0 (user_copy_failed). */
    .globl hal_copy_from_user, user_copy_words, user_copy_bytes, user_copy_end
hal_copy_from_user:
    xor  %eax, %eax                     # false, until all is copied
    mov  %rsi, %rcx
    add  %rdx, %rcx                     # the end
    jc   user_copy_end                  # it wraps
    shr  $47, %rcx                      # the user half ends at 2^47
    jnz  user_copy_end
    mov  %rdx, %rcx
    shr  $3, %rcx                       # whole words first: on some KVMs each step costs a microsecond
user_copy_words:
    rep  movsq
    mov  %edx, %ecx
    and  $7, %ecx                       # the bytes that remain
user_copy_bytes:
    rep  movsb
    mov  $1, %eax                       # true
user_copy_end:
    ret

    .section .bss.crossing, "aw", @nobits
    .balign 8
    .globl user_return
user_return:
    .skip 8
