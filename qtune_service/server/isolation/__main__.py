"""Apply limits and become a command: `python -m qtune_service.server.isolation LIMITS COMMAND...`."""

import os
import sys

from qtune_service.server.isolation.limits import ProcessLimits

ProcessLimits.parse(sys.argv[1]).apply()
os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - a command of the server, without a shell
