"""One Hypothesis profile for all tests: the same examples on every run, and no deadline on a shared machine."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("alidade", derandomize=True, deadline=None)
hypothesis.settings.load_profile("alidade")
