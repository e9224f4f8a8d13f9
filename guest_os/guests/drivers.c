/* Uses each virtio device it finds once, and says what came of it. */
#include "kernel.h"
#include "virtio.h"

int guest_main(void)
{
    static uint8_t bytes[512];
    static const char greeting[] = "Hello from vtk, through virtio-console.\n";

    uint32_t random = virtio_rng_read(bytes, 16);
    print("{\"driver\":\"virtio-rng\",\"bytes\":%u}\n", random);

    struct virtio_blk *disk = virtio_blk_disk();
    print("{\"driver\":\"virtio-blk\",\"size\":%lu,\"read_only\":%s,\"read\":%s}\n", disk ? virtio_blk_size(disk) : 0,
          disk && virtio_blk_read_only(disk) ? "true" : "false",
          disk && virtio_blk_read(disk, 0, bytes, sizeof bytes) ? "true" : "false");

    bool console = virtio_console_start();
    if (console)
        virtio_console_write(greeting, sizeof greeting - 1);
    print("{\"driver\":\"virtio-console\",\"written\":%lu}\n", console ? sizeof greeting - 1 : 0);
    if (console && command_line_number("console_echo", 0) != 0) {
        uint32_t length = virtio_console_read((char *)bytes, sizeof bytes);
        virtio_console_write((const char *)bytes, length);
        print("{\"driver\":\"virtio-console\",\"echoed\":%u}\n", length);
    }
    return 0;
}
