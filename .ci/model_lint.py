"""Lint the model files with transformers-mlinter, less the rules waived here.

The linter is written for the transformers library's own tree; its command line cannot switch a rule off, so this
calls it as a library. To waive a rule in one place, write `# trf-ignore: TRFnnn` on its line.
"""

import sys
from pathlib import Path

from mlinter import DEFAULT_ENABLED_TRF_RULES, analyze_file, iter_modeling_files

WAIVED = {
    "TRF016": "each `do_*` flag named in `_preprocess`: handed on as `**options`, which the rule does not follow",
    "TRF028": "licence header in every file: LICENSE says it once for the repository",
    "TRF041": "`# CODEPATH:` note on each branch that reads the config: routing options are the method's ablations, "
    "each reachable from any checkpoint, not the quirks of one",
    "TRF053": "labels shifted by `self.loss_function` alone: that takes logits of all positions, and here they are "
    "computed only where a label needs one",
    "TRF057": "`@auto_docstring`: shapes, units and errors are written by hand; the decorator knows only the "
    "library's own models",
}

root = Path(__file__).resolve().parent.parent
if unknown := set(WAIVED) - DEFAULT_ENABLED_TRF_RULES:
    sys.exit(f"waived but not among the linter's default rules: {', '.join(sorted(unknown))}")

files = list(iter_modeling_files(search_paths=sorted(set(root.glob("*.py")) - {root / "__init__.py"})))
violations = [
    violation
    for path in files
    for violation in analyze_file(path, path.read_text("utf-8"), DEFAULT_ENABLED_TRF_RULES - set(WAIVED))
]
for violation in violations:
    print(f"{violation.file_path.relative_to(root)}:{violation.line_number}: {violation.message}")
print(f"mlinter: {len(violations)} violations in {len(files)} files")
sys.exit(bool(violations))
