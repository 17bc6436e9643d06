"""Run `python -m qtune_service.server.isolation LIMITS COMMAND...`: apply limits, then become the command."""

import os
import sys

from qtune_service.server.isolation.limits import ProcessLimits

ProcessLimits.parse(sys.argv[1]).apply()
os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - a command of the server's, without a shell
