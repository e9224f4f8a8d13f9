/* Repeats each line it is given, until `quit`. */
#include "kernel.h"

int guest_main(void)
{
    char line[256];
    hal_console_listen();
    print("echo: type lines; quit ends\n");
    for (;;) {
        console_read_line(line, sizeof line);
        if (text_equal(line, "quit"))
            return 0;
        print("%s\n", line);
    }
}
