"""``python -m stainbridge.training.launch_node``: torchrun, which tells its supervisor which ranks failed, and prints no traceback.

Takes torchrun's own arguments.
"""

from __future__ import annotations

import logging
import sys

from .launch_line import follow_supervisor, note


def main() -> None:
    """Run torchrun once; exit code 1 if a rank failed, 128 + n after signal n."""
    follow_supervisor()
    # What it would log is said once, and shorter, by the supervisor.
    logging.disable(logging.CRITICAL)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        note("failures", {str(rank): failure.exitcode for rank, failure in sorted(error.failures.items())})
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
