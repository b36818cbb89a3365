"""`videollm-mod calibrate`."""

from ..calibration.options import CalibrateOptions
from .options import add_command
from .threads import use_free_cores


def add(commands) -> None:
    add_command(commands, "calibrate", CalibrateOptions, run, help="choose which layers route, without training")


def run(options: CalibrateOptions) -> None:
    options.check()
    use_free_cores()  # imports torch
    from ..calibration.calibrate import calibrate

    print(calibrate(options))
