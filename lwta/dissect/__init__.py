"""Words for units and evidence for decisions, for any module and any loader."""
