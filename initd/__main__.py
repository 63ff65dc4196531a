"""How a process of initd starts: PID 1, or one of its workers (`init worker NAME`)."""

import gc
import os
import sys


def main() -> int:
    """Be what the command line and the pid say; returns an exit status, except as PID 1."""
    if sys.argv[1:2] == ["worker"] and len(sys.argv) == 3:
        from initd import worker  # noqa: PLC0415 only one of the two is wanted

        return worker.main(sys.argv[2])
    if os.getpid() == 1:
        gc.disable()  # until the loop runs: to look through what imports make costs a twelfth of their time for nothing
        from initd import init  # noqa: PLC0415 see above

        init.main()
    sys.stderr.write("initd: this is PID 1 of a node, to be started by a kernel; its client is initctl\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
