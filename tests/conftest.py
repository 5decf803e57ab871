"""What all tests share."""

from hypothesis import settings

# A machine under load is slow, not wrong: no example has a time limit.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
