"""How alike texts are: CIDEr, METEOR and ROUGE-L of pycocoevalcap.

Words are compared in lower case and without punctuation, by one rule of our own: the library's tokenizer needs Java.
So does METEOR, which is left out where there is none.
"""

import re
import shutil

NEEDS_JAVA = "METEOR is left out: it needs Java, and there is no `java` on the PATH"


def plain_words(text: str) -> str:
    """The words of a text in lower case, with one space between them."""
    return " ".join(re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text.lower()))


def check_captions() -> None:
    """Raise `ImportError` if the library is missing."""
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError as error:
        raise ImportError("text metrics need pycocoevalcap: pip install videollm-mod[eval]") from error


def caption_scores(pairs: list[tuple[str, str]]) -> dict[str, float | None]:
    """CIDEr, METEOR and ROUGE-L of pairs `(said, true)`, times 100 as they are usually given; CIDEr weighs words by
    how few of these pairs' true texts have them. None without pairs, METEOR also without Java.

    METEOR is that of all pairs as one text, as captioning papers give it. Its penalty for fragments is waived for a
    perfect text only, so it falls from 100 to below 90 with the first wrong word among many pairs.

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
