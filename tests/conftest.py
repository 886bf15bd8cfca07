"""What holds for all tests: property tests draw the same examples every time."""

from hypothesis import settings

# derandomize: a failure on one machine is a failure on all. No deadline: a busy machine is slow, not wrong.
settings.register_profile("momentum-gs", derandomize=True, deadline=None)
settings.load_profile("momentum-gs")
