/*
 * The C twin of minivmm's exit loop: the same guest code, the same KVM calls, the least a VMM can do per exit.
 *
 *   exit_loop PORT EXITS [irqchip]    prints nanoseconds per exit
 *
 * The guest executes `out dx, al; loop` in 64-bit mode at CPL 0. Every exit is dispatched by reason, port and
 * direction to a "device" that stores the byte, as minivmm's bus and UART do.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint8_t scratch;

static void device_write(unsigned offset, uint8_t value)
{
    if (offset == 7)
        scratch = value;
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    unsigned port = argc > 1 ? strtoul(argv[1], 0, 0) : 0x3ff;
    unsigned long exits = argc > 2 ? strtoul(argv[2], 0, 0) : 10000;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        die("/dev/kvm");
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    size_t size = 2 << 20;
    uint8_t *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {.memory_size = size, .userspace_addr = (uint64_t)memory};
    if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
        die("KVM_SET_USER_MEMORY_REGION");
    if (argc > 3 && ioctl(vm, KVM_CREATE_IRQCHIP, 0))
        die("KVM_CREATE_IRQCHIP");
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (vcpu < 0 || run == MAP_FAILED)
        die("KVM_CREATE_VCPU");

    /* again: out dx, al; jmp again */
    memcpy(memory + 0x100000, "\xee\xeb\xfd", 3);
    uint64_t *pml4 = (uint64_t *)(memory + 0x9000), *pdpt = (uint64_t *)(memory + 0xa000);
    uint64_t *pd = (uint64_t *)(memory + 0xb000);
    pml4[0] = 0xa000 | 3;
    pdpt[0] = 0xb000 | 3;
    pd[0] = 0x83;

    struct kvm_sregs sregs;
    ioctl(vcpu, KVM_GET_SREGS, &sregs);
    struct kvm_segment code = {.limit = ~0u, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = 0x18, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.cr0 = 0x80050033;
    sregs.cr3 = 0x9000;
    sregs.cr4 = 0x620;
    sregs.efer = 0xd01;
    struct kvm_regs regs = {.rip = 0x100000, .rdx = port, .rax = 0x5a, .rflags = 2};
    if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
        die("KVM_SET_SREGS");

    uint64_t start = 0;
    unsigned long count[64] = {0};
    unsigned long warm = exits / 10 + 1;
    for (unsigned long i = 0; i < exits + warm; i++) {
        if (i == warm)
            start = now();
        if (ioctl(vcpu, KVM_RUN, 0))
            die("KVM_RUN");
        count[run->exit_reason & 63]++;
        switch (run->exit_reason) {
        case KVM_EXIT_IO:
            if (run->io.direction == KVM_EXIT_IO_OUT && run->io.size == 1 && run->io.port >= 0x3f8 && run->io.port < 0x400) {
                device_write(run->io.port - 0x3f8, *((uint8_t *)run + run->io.data_offset));
                break;
            } /* fall through */
        default:
            fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
            return 1;
        }
    }
    printf("%.1f\n", (double)(now() - start) / exits);
    return scratch != 0x5a;
}
