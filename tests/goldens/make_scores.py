"""Makes the goldens of `src/score`: what the reference implementations compute, for our tests to compare with.

    pip install numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1 sacrebleu==2.6.0 transformers==4.57.3
    python tests/goldens/make_scores.py

(transformers 5 has no SQuAD metric any more.) One JSON file per module, inputs and figures side by side, in `scores/`:

    classification.json   scikit-learn: confusion matrix, accuracy, F1 and the others, single and multi-label
    regression.json       scikit-learn and scipy: errors, correlations, R²; undefined figures are null
    squad.json            transformers' copy of SQuAD 2.0's script; SQuAD 1.1 and MLQA's Chinese by their published
                          rules, written out below; the boundaries of Unicode's punctuation
    translation.json      sacreBLEU: BLEU with four tokenizers, chrF and chrF++, corpus by corpus, with signatures
"""

import json
import math
import os
import string
import sys
import unicodedata
import warnings
from collections import Counter

import numpy
import scipy.stats
import sklearn.metrics as metrics
from sacrebleu.metrics import BLEU, CHRF
from transformers.data.metrics import squad_metrics

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scores")


def number(value):
    """A float as JSON has it: NaN is null."""
    value = float(value)
    return value if math.isfinite(value) else None


# ---- classification ---------------------------------------------------------------------------------------------


def single_label(name, classes, truths, predictions):
    labels = list(range(len(classes)))
    present = sorted(set(truths) | set(predictions))
    average = lambda kind: metrics.f1_score(truths, predictions, labels=present, average=kind, zero_division=0)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truths, predictions, labels=labels, zero_division=0
    )
    golden = {
        "name": name,
        "classes": classes,
        "truths": truths,
        "predictions": predictions,
        "confusion": metrics.confusion_matrix(truths, predictions, labels=labels).tolist(),
        "accuracy": metrics.accuracy_score(truths, predictions),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": [int(count) for count in support],
        "macro_f1": average("macro"),
        "weighted_f1": average("weighted"),
        "matthews_correlation": metrics.matthews_corrcoef(truths, predictions),
        "binary_f1": None,
    }
    if len(classes) == 2:
        golden["binary_f1"] = metrics.f1_score(truths, predictions, pos_label=1, average="binary", zero_division=0)
    return golden


def multi_label(name, classes, scores, truths, threshold):
    predictions = (numpy.array(scores, dtype=numpy.float32) >= numpy.float32(threshold)).astype(int)
    truths = numpy.array(truths)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(truths, predictions, zero_division=0)
    average = lambda kind: metrics.f1_score(truths, predictions, average=kind, zero_division=0)
    return {
        "name": name,
        "classes": classes,
        "scores": [value for row in scores for value in row],
        "truths": [bool(value) for row in truths for value in row],
        "threshold": threshold,
        "subset_accuracy": metrics.accuracy_score(truths, predictions),
        "micro_f1": average("micro"),
        "macro_f1": average("macro"),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": [int(count) for count in support],
    }


def classification():
    random = numpy.random.default_rng(5)

    def noisy(classes, count, right):
        truths = random.integers(0, classes, count)
        guesses = random.integers(0, classes, count)
        return truths.tolist(), numpy.where(random.random(count) < right, truths, guesses).tolist()

    def scores(rows, columns):
        # Eighths are exact in f32, and many of them hit the threshold itself.
        return (random.integers(0, 9, (rows, columns)) / 8).tolist()

    sentiment, digits = ["negative", "positive"], [str(digit) for digit in range(10)]
    languages = ["English", "中文", "español"]
    rows = lambda count, columns: random.integers(0, 2, (count, columns)).tolist()
    return {
        "single": [
            single_label("two classes", sentiment, *noisy(2, 60, 0.7)),
            single_label("ten classes", digits, *noisy(10, 200, 0.8)),
            single_label("all right", languages, [0, 1, 2, 2, 1], [0, 1, 2, 2, 1]),
            single_label("all wrong", sentiment, [0, 1, 1, 0], [1, 0, 0, 1]),
            single_label("one class predicted", sentiment, [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]),
            single_label("one class only", sentiment, [1, 1, 1], [1, 1, 1]),
            single_label("the second never occurs", sentiment, [0, 0], [0, 0]),
            single_label("a class that never occurs", ["a", "b", "never", "c"], [0, 1, 3, 3, 0], [0, 3, 3, 1, 0]),
            single_label("predicted but never true", languages, [0, 1, 0, 1], [0, 2, 0, 1]),
            single_label("true but never predicted", languages, [0, 1, 2, 2], [0, 1, 0, 1]),
            single_label("one example", languages, [1], [2]),
        ],
        "multi": [
            multi_label("random", ["a", "b", "c", "d"], scores(40, 4), rows(40, 4), 0.5),
            multi_label("high threshold", ["a", "b", "c"], scores(30, 3), rows(30, 3), 0.875),
            multi_label("nothing predicted", ["a", "b", "c"], scores(5, 3), rows(5, 3), 2.0),
            multi_label("all predicted", ["a", "b"], scores(7, 2), rows(7, 2), 0.0),
            multi_label("nothing true or predicted", ["a", "b", "c"], [[0.0] * 3] * 2, [[0] * 3] * 2, 0.5),
            multi_label("all right", ["a", "b"], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[1, 0], [0, 1], [1, 1]], 0.5),
        ],
    }


# ---- regression -------------------------------------------------------------------------------------------------


def regression():
    random = numpy.random.default_rng(7)
    noise = random.normal(size=50)
    line = numpy.linspace(-3, 5, 50)
    cases = {
        "noisy line": (line + noise, line),
        "falling": (-line + 0.1 * noise, line),
        "exact": (line, line),
        "ties": (random.integers(0, 4, 40).astype(float), random.integers(0, 5, 40).astype(float)),
        "all tied but one": ([1.0, 1.0, 1.0, 2.0], [0.5, 0.25, 0.5, 3.0]),
        "monotone, not linear": (numpy.exp(line), line),
        "constant predictions": ([2.0, 2.0, 2.0], [1.0, 2.0, 4.0]),
        "constant targets": ([1.0, 2.0, 4.0], [2.0, 2.0, 2.0]),
        "constant and right": ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]),
        "two": ([1.0, 2.5], [3.0, -1.0]),
        "one": ([1.5], [1.0]),
        "far from zero": (1e9 + noise, 1e9 + line),
        "huge": (line * 1e200, line * 1e200 + 1e199),
        "tiny": (line * 1e-200 + noise * 1e-201, line * 1e-200),
        "negative zero ties with zero": ([0.0, -0.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]),
    }
    goldens = []
    for name, (predictions, targets) in cases.items():
        predictions, targets = numpy.array(predictions), numpy.array(targets)
        golden = {"name": name, "predictions": predictions.tolist(), "targets": targets.tolist()}
        with warnings.catch_warnings(), numpy.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            golden["mean_squared_error"] = number(metrics.mean_squared_error(targets, predictions))
            golden["mean_absolute_error"] = number(metrics.mean_absolute_error(targets, predictions))
            golden["r_squared"] = number(metrics.r2_score(targets, predictions))
            pairs = len(targets) >= 2  # scipy refuses less
            golden["pearson"] = number(scipy.stats.pearsonr(predictions, targets)[0]) if pairs else None
            golden["spearman"] = number(scipy.stats.spearmanr(predictions, targets)[0]) if pairs else None
        goldens.append(golden)
    return goldens


# ---- squad ------------------------------------------------------------------------------------------------------

ENGLISH = [
    # (gold answers, prediction); no gold answer means that the question has none.
    (["Denver Broncos"], "Denver Broncos"),
    (["Denver Broncos"], "the denver broncos!"),
    (["Denver Broncos"], "Broncos"),
    (["Denver Broncos"], "Carolina Panthers"),
    (["Broncos", "Denver Broncos", "the Broncos of Denver"], "Denver Broncos"),
    (["Broncos", "The Denver Broncos team"], "Denver's Broncos"),
    ([], ""),
    ([], "something"),
    ([], "the"),
    ([], "..."),
    ([], " \t\n"),
    (["something"], ""),
    (["something"], "the"),
    (["the"], ""),
    (["the"], "a"),
    (["The Who"], "Who"),
    (["The The"], "the"),
    (["an"], "another"),
    (["..."], "?"),
    (["...", "dots"], "dots"),
    (["...", "dots"], "?!"),
    (["the", "The Band"], "band"),
    ([""], ""),
    ([""], "x"),
    (["", "answer"], ""),
    (["", "answer"], "answer"),
    (["a"], "A"),
    (["vitamin A"], "vitamin"),
    (["a-b"], "ab"),
    (["a-b"], "a b"),
    (["the-end"], "end"),
    (["theatre"], "the atre"),
    (["an_apple"], "apple"),
    (["to be or not to be"], "to be"),
    (["to be or not to be"], "to to to be be be"),
    (["b b b"], "b"),
    (["b"], "b b b b"),
    (["1,000"], "1000"),
    (["1,000"], "1 000"),
    (["3.14"], "314"),
    (["$5"], "5"),
    (["50%"], "50 percent"),
    (["Café"], "cafe"),
    (["Café"], "CAFÉ"),
    (["Cafe\u0301"], "Café"),
    (["ΟΔΟΣ"], "οδος"),
    (["straße"], "STRASSE"),
    (["İstanbul"], "i̇stanbul"),
    (["“quoted”"], "quoted"),
    (["rock ‘n’ roll"], "rock 'n' roll"),
    (["1990–1995"], "1990-1995"),
    (["two words"], "two\u00a0words"),
    (["two words"], "two\u3000words"),
    (["two words"], "two\u200bwords"),
    (["two words"], "two\x1cwords"),
    (["  spaced \n out "], "spaced out"),
    (["北京"], "北京"),
    (["北京市"], "北京"),
    (["the 北京 airport"], "北京 airport"),
    (["a北京"], "北京"),
    (["naïve a the an"], "naïve"),
    (["A. A. Milne"], "Milne"),
    (["A. A. Milne"], "AA Milne"),
    (["Ana and the an"], "ana AND"),
    (["emoji 😀"], "😀"),
    (["x" * 300], "x" * 300 + " y"),
]

CHINESE = [
    (["北京"], "北京"),
    (["北京"], "北京市"),
    (["北京"], "上海"),
    (["北京大学"], "京北学大"),
    (["《红楼梦》"], "红楼梦"),
    (["“你好，世界！”"], "你好世界"),
    (["你好，世界"], "你好,世界"),
    (["1998年"], "1998年"),
    (["1998年"], "1998"),
    (["1998年5月"], "1998 年 5 月"),
    (["约3.5万"], "3.5万"),
    (["3.5万"], "35万"),
    (["NBA总冠军"], "nba 总冠军"),
    (["NBA总冠军", "总冠军"], "冠军"),
    (["the北京"], "北京"),
    (["the 北京"], "a 北京"),
    (["天天天"], "天"),
    (["天"], "天天天天"),
    (["。。。"], "，"),
    (["。"], ""),
    ([], ""),
    ([], "。"),
    ([], "没有"),
    (["没有"], ""),
    (["", "没有"], "没有"),
    (["ひらがな漢字"], "漢字"),
    (["한국어"], "한국"),
    (["龥龦"], "龦龥"),
    (["𠀀𠀁"], "𠀀"),
    (["㐀"], "㐀"),
    (["北 京"], "北京"),
    (["北\u3000京"], "北京"),
    (["ＡＢＣ"], "abc"),
    (["ＡＢＣ"], "ａｂｃ"),
    (["５０％"], "50%"),
    (["50％"], "50%"),
    (["￥50"], "¥50"),
    (["C++语言"], "C语言"),
    (["王·小明"], "王小明"),
    (["——破折号"], "破折号"),
    (["「引用」"], "引用"),
    (["他说：“去。”"], "他说去"),
    (["Apple公司 of America"], "apple 公司 America"),
    (["2008年北京奥运会", "北京奥运会", "奥运会"], "北京奥运"),
]


def best_of(pairs_f1, exact, golds, prediction):
    return {
        "exact_match": bool(max(exact(gold, prediction) for gold in golds)),
        "f1": float(max(pairs_f1(gold, prediction) for gold in golds)),
    }


def overlap_f1(gold_tokens, predicted_tokens, empty):
    """SQuAD's F1 of two bags of tokens; `empty` says what two bags are worth of which one is empty (None: nothing)."""
    if empty and not (gold_tokens and predicted_tokens):
        return float(gold_tokens == predicted_tokens)
    same = sum((Counter(gold_tokens) & Counter(predicted_tokens)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted_tokens), same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def squad_1(golds, prediction):
    """SQuAD 1.1: no question is without an answer, so an empty prediction has F1 0 even against an empty answer."""
    normal = squad_metrics.normalize_answer
    f1 = lambda gold, answer: overlap_f1(normal(gold).split(), normal(answer).split(), empty=False)
    return best_of(f1, lambda gold, answer: normal(gold) == normal(answer), golds or [""], prediction)


def squad_2(golds, prediction):
    golds = [gold for gold in golds if squad_metrics.normalize_answer(gold)] or [""]
    return best_of(squad_metrics.compute_f1, squad_metrics.compute_exact, golds, prediction)


def is_punctuation(character):
    return unicodedata.category(character).startswith("P") or character in string.punctuation


def chinese_tokens(text):
    """MLQA's rules for zh: lower case, no punctuation of any script, each of U+4E00 to U+9FA5 a token of its own."""
    kept = "".join(character for character in text.lower() if not is_punctuation(character))
    return "".join(f" {c} " if "\u4e00" <= c <= "\u9fa5" else c for c in kept).split()


def mlqa_chinese(golds, prediction, unanswerable):
    if unanswerable:
        golds = [gold for gold in golds if chinese_tokens(gold)]
    f1 = lambda gold, answer: overlap_f1(chinese_tokens(gold), chinese_tokens(answer), empty=unanswerable)
    exact = lambda gold, answer: chinese_tokens(gold) == chinese_tokens(answer)
    return best_of(f1, exact, golds or [""], prediction)


def over_all(cases, rule):
    """The figures of a whole data set in percent, as SQuAD 2.0's script gives them."""
    scored = [(bool(golds), rule(golds, prediction)) for golds, prediction in cases]
    figures = {}
    for key, which in [("all", (True, False)), ("answerable", (True,)), ("unanswerable", (False,))]:
        chosen = [score for has_answer, score in scored if has_answer in which]
        figures[key] = {
            "exact_match": 100.0 * sum(score["exact_match"] for score in chosen) / len(chosen),
            "f1": 100.0 * sum(score["f1"] for score in chosen) / len(chosen),
            "questions": len(chosen),
        }
    return figures


def squad():
    chinese = lambda golds, prediction: mlqa_chinese(golds, prediction, unanswerable=False)
    chinese_2 = lambda golds, prediction: mlqa_chinese(golds, prediction, unanswerable=True)

    def goldens(cases, rules):
        listed = []
        for golds, prediction in cases:
            figures = {name: rule(golds, prediction) for name, rule in rules.items()}
            listed.append({"golds": golds, "prediction": prediction} | figures)
        return {"cases": listed, "over_all": {name: over_all(cases, rule) for name, rule in rules.items()}}

    boundaries, inside = [], False
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)).startswith("P") != inside:
            inside = not inside
            boundaries.append(code)
    return {
        "english": goldens(ENGLISH, {"squad_1": squad_1, "squad_2": squad_2}),
        "chinese": goldens(CHINESE, {"mlqa_chinese": chinese, "mlqa_chinese_unanswerable": chinese_2}),
        "unicode_version": unicodedata.unidata_version,
        "punctuation_boundaries": boundaries,
    }


# ---- translation ------------------------------------------------------------------------------------------------

ENGLISH_PAIRS = [
    # (hypothesis, references)
    ("The cat sat on the mat.", ["The cat sat on the mat."]),
    ("The cat is sitting on the mat.", ["The cat sat on the mat."]),
    ("the the the the the the the", ["The cat is on the mat."]),
    ("", ["An empty hypothesis has nothing right."]),
    ("Something where nothing is wanted", [""]),
    ("", [""]),
    ("   ", [" \t"]),
    ("He paid $1,234.56 (in cash), didn't he?", ["He paid $1,234.56 in cash, did he not?"]),
    ("Versions 1.2.3 and 4.5-6 of e.g. 10-20.", ["Versions 1.2.3, and 4.5-6 (e.g. 10-20)."]),
    ("A well-known state-of-the-art method -- really", ["A well known, state-of-the-art method - really"]),
    ("&quot;Quoted&quot; &amp; &lt;b&gt; &amp;lt;", ["\"Quoted\" & <b> <"]),
    ("<skipped>Kept</skipped> line-\nbreak and\nnewline", ["Kept line break and newline"]),
    ("Mr. Smith's 3.5% rise, at 5 p.m., was $.50.", ["Mr Smith's rise of 3.5% at 5pm was $0.50."]),
    ("Wait... what?! .5 or 5. or 5.x,y,5,", ["Wait … what? .5 or 5. or x, y, 5"]),
    ("http://example.org/a_b?c=d#e", ["http://example.org/a_b?c=d#f"]),
    ("Tab\tand  two   spaces", ["Tab and two spaces"]),
    ("one", ["one"]),
    ("two words", ["two words"]),
    ("three words here", ["three words there"]),
    ("(hi) \"there\", ok: 'yes'", ["(hi) 'there', ok: \"yes\""]),
    ("Größe naïve café — œuvre", ["Grösse naive café – œuvre"]),
    ("e\u0301galite\u0301", ["égalité"]),
    ("no\u00a0break\u2009thin\u3000wide\x1cseparated", ["no break thin wide separated"]),
    ("a_b ^ c ~ d | e {f} [g] \\h `i` @j *k +l =m", ["a_b ^ c ~ d | e {f} [g] \\h `i` @j *k +l =n"]),
    ("5-3 = 2, 5 -3, 5- 3, x-5, 5-x, 5--3", ["5-3 = 2, 5 - 3, 5- 3, x-5, 5-x, 5—3"]),
    ("A much longer translation than the reference has words for, by far and away", ["A longer translation"]),
    ("Short", ["A reference that is much longer than what the system said about it"]),
]

CHINESE_PAIRS = [
    ("猫坐在垫子上。", ["猫坐在垫子上。"]),
    ("那只猫在垫子上坐着。", ["猫坐在垫子上。"]),
    ("的的的的的的", ["我的书在你的桌子上。"]),
    ("", ["空的翻译什么也没有。"]),
    ("他付了1,234.56元（现金），是吗？", ["他付了 1,234.56 元现金，对吗？"]),
    ("我在Google工作，since 2010年。", ["我从2010年起在 Google 工作。"]),
    ("“你好”，她说——真的……", ["「你好」，她说—真的…"]),
    ("价格上涨了3.5%，达到$20-30", ["价格上涨 3.5％，至20-30美元"]),
    ("ＡＢＣ全角１２３", ["ABC全角123"]),
    ("𠀀𠀁是扩展字符", ["𠀀是扩展B字符"]),
    ("北京　上海", ["北京 上海"]),
    ("①→②★☆♥✓", ["①→③★☆♥✓"]),
    ("これは日本語です。", ["これは日本語でした。"]),
    ("한국어 문장입니다.", ["한국어 문장이다."]),
    ("㈱㌔⼀⿰㇀ㄅㆠ︐︰", ["㈱㌔⼀⿱㇀ㄅㆠ︐︱"]),
    ("豈更車 ︙ﾊﾝ", ["豈更车 ︙ﾊﾝ"]),
    ("😀😃 好", ["😀 好"]),
    ("x.y，3.z、4", ["x.y,3.z,4"]),
]

MORE_REFERENCES = [
    ("The cat sat on the mat.", ["A cat was on the mat.", "The cat sat upon the mat.", "On the mat sat the cat"]),
    ("the the the cat", ["the cat the", "the the dog", "a cat"]),
    ("it is four words", ["it is", "it is a reference of six", "is it"]),
    ("", ["something", ""]),
    ("any thing else", ["", "any thing"]),
    ("", ["now", "it is a b"]),
]


def figures(pairs, references):
    hypotheses = [hypothesis for hypothesis, _ in pairs]
    streams = [[listed[i] if i < len(listed) else None for _, listed in pairs] for i in range(references)]
    result = {"bleu": {}, "chrf": {}}
    for tokenizer in ["13a", "zh", "char", "none"]:
        bleu = BLEU(tokenize=tokenizer, force=True)
        score = bleu.corpus_score(hypotheses, streams)
        result["bleu"][tokenizer] = {
            "score": score.score,
            "matches": [int(count) for count in score.counts],
            "totals": [int(count) for count in score.totals],
            "precisions": score.precisions,
            "brevity_penalty": score.bp,
            "hypothesis_length": score.sys_len,
            "reference_length": score.ref_len,
            "signature": str(bleu.get_signature()),
        }
    for name, word_order in [("chrf", 0), ("chrf++", 2)]:
        chrf = CHRF(word_order=word_order)
        score = chrf.corpus_score(hypotheses, streams).score
        result["chrf"][name] = {"score": score, "signature": str(chrf.get_signature())}
    return result


def translation():
    goldens = []

    def add(name, pairs):
        references = max(len(listed) for _, listed in pairs)
        golden = {"name": name, "hypotheses": [h for h, _ in pairs], "references": [listed for _, listed in pairs]}
        goldens.append(golden | figures(pairs, references))

    for pairs in (ENGLISH_PAIRS, CHINESE_PAIRS, MORE_REFERENCES):
        for pair in pairs:
            add(f"only {pair[0]!r}", [pair])
    add("English", ENGLISH_PAIRS)
    add("Chinese", CHINESE_PAIRS)
    add("English and Chinese", ENGLISH_PAIRS + CHINESE_PAIRS)
    add("several references", MORE_REFERENCES[:1] + MORE_REFERENCES[:1])
    add("as many references as there are", MORE_REFERENCES + ENGLISH_PAIRS[:3])
    # Every character below U+3400 and of the blocks around the Chinese ones, between letters and between digits:
    # what a tokenizer splits, and what Python calls white space.
    codes = [*range(1, 0x3400), *range(0xF8F0, 0xFB10), *range(0xFE00, 0x10000), 0x1F600, 0x20000, 0x2F801]
    every = [f"a{chr(code)}b 1{chr(code)}2" for code in codes]
    without = ["a b 1 2"] * len(every)
    golden = figures([(h, [r]) for h, r in zip(every, without)], 1)
    return {"corpora": goldens, "every_character": golden}


def write(file, value):
    """JSON with a line for each case: small, and a change shows which case it is."""
    compact = lambda part: json.dumps(part, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        file.write("[\n" + ",\n".join(compact(part) for part in value) + "\n]")
    elif isinstance(value, dict):
        file.write("{\n")
        for index, (key, part) in enumerate(value.items()):
            file.write(",\n" * (index > 0) + compact(key) + ":")
            write(file, part)
        file.write("\n}")
    else:
        file.write(compact(value))


def main():
    made = {
        "classification": classification(),
        "regression": regression(),
        "squad": squad(),
        "translation": translation(),
    }
    os.makedirs(FOLDER, exist_ok=True)
    for name, golden in made.items():
        with open(os.path.join(FOLDER, f"{name}.json"), "w", encoding="utf-8") as file:
            write(file, golden)
            file.write("\n")


if __name__ == "__main__":
    main()
