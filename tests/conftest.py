"""What all tests share."""

import signal

from hypothesis import settings

# A machine under load is slow, not wrong: no example has a time limit.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A shell without job control starts what runs in the background with SIGINT ignored, and all that is started
# from there inherits it: a process that a test interrupts would go on.
signal.signal(signal.SIGINT, signal.default_int_handler)
