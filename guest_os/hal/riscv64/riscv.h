/* This layer's own functions, and the instructions C has no words for. */
#pragma once
#include <stdint.h>

#define read_csr(name)                                                  \
    ({                                                                  \
        uint64_t value_;                                                \
        __asm__ volatile("csrr %0, " #name : "=r"(value_) : : "memory"); \
        value_;                                                         \
    })
#define write_csr(name, value) __asm__ volatile("csrw " #name ", %0" : : "rK"(value) : "memory")
#define set_csr(name, bits) __asm__ volatile("csrs " #name ", %0" : : "rK"(bits) : "memory")
#define clear_csr(name, bits) __asm__ volatile("csrc " #name ", %0" : : "rK"(bits) : "memory")

uint64_t user_enter(uint64_t pc, uint64_t stack, uint64_t argument); /* traps.S */
void interrupt_handle(uint64_t cause);                               /* interrupts.c */
void timer_interrupt(void);                                          /* timer.c */
uint64_t device_tree_timebase(void);                                 /* device_tree.c: ticks of `time` a second */
