"""The hundred texts that every runtime embeds."""

from __future__ import annotations

_SHORT = (
    "a", "csv", "7", "?", "-", "how do I read a csv file",
    "Parse a file of comma-separated values.", "What is the capital of France?",
    "Return the first element that satisfies the predicate.", "open a socket", "list.sort",
    "the quick brown fox jumps over the lazy dog", "HTTP 404", "sort by date, newest first",
    "Is it treatable?", "who wrote it", "a  b", "end.",
)  # fmt: skip

_CASED = (
    "HOW DO I READ A CSV FILE", "How Do I Read A Csv File", "iPhone vs IPHONE vs iphone",
    "NASA, NATO and the WHO", "camelCase snake_case kebab-case SCREAMING_CASE",
)  # fmt: skip

_SCRIPTS = (
    "Wie lese ich eine CSV-Datei? Straße, Größe, Übung.", "Où est la bibliothèque ? Ça dépend.",
    "¿Cómo leo un archivo CSV? Mañana, señor.", "Как прочитать файл CSV?",
    "Πώς διαβάζω ένα αρχείο CSV;", "如何读取 CSV 文件?", "如何讀取逗號分隔的檔案",
    "CSVファイルの読み方", "カタカナとひらがなと漢字", "CSV 파일을 어떻게 읽나요?",
    "كيف أقرأ ملف CSV؟", "איך קוראים קובץ CSV?", "CSV फ़ाइल कैसे पढ़ें?",
    "ฉันจะอ่านไฟล์ CSV ได้อย่างไร", "CSV faylını necə oxuyum? İstanbul, ısı",
    "Làm thế nào để đọc tệp CSV?", "როგორ წავიკითხო ფაილი", "Ինչպես կարդալ ֆայլը",
    "CSV ဖိုင်ကို ဘယ်လိုဖတ်မလဲ", "Jak przeczytać plik? Zażółć gęślą jaźń.",
)  # fmt: skip

_SYMBOLS = (
    "🙂", "🎉🎉🎉 it works", "a family 👨‍👩‍👧‍👦 and a flag 🇫🇷", "thumbs 👍🏽 up ❤️",
    "😀 smile 😭 cry 🤔 think", "∑ x² ≤ ∞ ∴ α ∈ ℝ", "10 € ≈ 11 $ ≈ 9 £",
    "“quoted” – ‘dashed’ — … •", "½ ⅓ ② Ⅳ ™ ©", "e\u0301 is not é", "ﬁne oﬀer",
    "ＦＵＬＬ　ＷＩＤＴＨ", "zero\u200bwidth\u00adsoft", "𝓯𝓪𝓷𝓬𝔂 𝕋𝔼𝕏𝕋", "ḧëävÿ mëtäl",
)  # fmt: skip

_MARKS = (
    "def read(path: str) -> list[dict]:\n    with open(path) as file:\n        return list(file)",
    "SELECT name FROM users WHERE id = 1; -- a comment",
    "<p>A <b>bold</b> &amp; plain text</p>", "https://example.org/a/b?c=d&e=f#g",
    "C:\\Users\\me\\file.txt", "first.last@example.org", '{"key": ["value", 1, null]}',
    "1,2,3\n4,5,6\n", "tab\tseparated\tvalues", "3.14159e-10 0xFF 1_000",
    "[CLS] [SEP] [PAD] [MASK] [UNK]", "<s> </s> <pad> <unk> <mask>",
    "query: passage: search_query:", "a" * 40, "!!!???...---",
    "# Title\n\n- one\n- two\n\n> quote",
)  # fmt: skip

_BLANK = ("", " ", "\n\t ", "   leading and trailing   ")

_WORDS = (
    "read", "the", "file", "and", "return", "its", "lines", "a", "table", "of", "words", "that",
    "no", "limit", "cuts", "at", "same", "place", "since", "each", "line", "is", "longer", "than",
    "one", "before", "it",
)  # fmt: skip


def _long(words: int) -> str:
    return " ".join(_WORDS[i * 7 % len(_WORDS)] for i in range(words))


_LENGTHS = (
    12, 20, 28, 40, 60, 80, 100, 120, 126, 127, 128, 140, 200, 250, 254, 256, 300, 400, 512, 800,
    2000,
)  # fmt: skip
_LONG = (*map(_long, _LENGTHS), "漢字" * 400)

KINDS: dict[str, tuple[str, ...]] = {
    "short texts": _SHORT,
    "capital letters": _CASED,
    "other scripts": _SCRIPTS,
    "emoji and symbols": _SYMBOLS,
    "code and marks": _MARKS,
    "blank texts": _BLANK,
    "long texts": _LONG,
}
"""What a text is -> the texts. Some are longer than a student's limit, whatever that is below 2,000
words.
"""

PROBES = tuple(text for texts in KINDS.values() for text in texts)
