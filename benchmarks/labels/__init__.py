"""Are units of a sparse, competing network easier to describe than a dense one's? docs/study.md."""
