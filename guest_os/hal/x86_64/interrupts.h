/* What the rest of this layer wants of apic.c. */
#pragma once
#include <stdint.h>

/* Runs the handler of an external interrupt's vector and tells the local APIC that it is done. */
void interrupt_handle(uint64_t vector);

/* The local APIC and IOAPIC are set up by the first use of any of them. */
void apic_start(void);
void apic_send_to_others(uint32_t command); /* interrupt command register, all CPUs but this one */
