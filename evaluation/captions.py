"""Caption metrics: CIDEr, METEOR and ROUGE-L of pycocoevalcap.

Texts are lower-cased and stripped of punctuation by our own function, because the library's tokenizer needs Java.
METEOR needs Java too, and is left out without it.
"""

import re
import shutil

NEEDS_JAVA = "METEOR is left out: it needs Java, and there is no `java` on the PATH"


def plain_words(text: str) -> str:
    """The lower-case words of a text, separated by one space."""
    return " ".join(re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text.lower()))


def check_captions() -> None:
    """Raise `ImportError` if the library is missing."""
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError as error:
        raise ImportError("text metrics need pycocoevalcap: pip install videollm-mod[eval]") from error


def caption_scores(pairs: list[tuple[str, str]]) -> dict[str, float | None]:
    """CIDEr, METEOR and ROUGE-L of pairs `(said, true)`, times 100 as usual. CIDEr weights words by how rare they are
    in the true texts of these pairs. All are None without pairs, and METEOR is None without Java.

    METEOR is computed over all pairs as one text, as in captioning papers. Only a perfect text avoids its
    fragmentation penalty, so a single wrong word lowers it from 100 to below 90 even among many pairs.

    Raises:
        `ImportError`: without pycocoevalcap.
    """
    check_captions()
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    scorers = {"cider": Cider, "meteor": Meteor if shutil.which("java") else None, "rouge_l": Rouge}
    if not pairs:
        return dict.fromkeys(scorers)
    said = {index: [plain_words(text)] for index, (text, _) in enumerate(pairs)}
    true = {index: [plain_words(text)] for index, (_, text) in enumerate(pairs)}
    return {
        name: None if scorer is None else 100 * float(scorer().compute_score(true, said)[0])
        for name, scorer in scorers.items()
    }
