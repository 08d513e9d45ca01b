"""Stands before the real one, where a test's processes have no images to draw."""

raise ImportError("drawing a run takes 0.7 s of CPU, and this test looks at no images")
