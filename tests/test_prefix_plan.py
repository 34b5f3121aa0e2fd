"""However prompts are cut, every token of them is read, and every answer has its place."""

from hypothesis import given
from hypothesis import strategies as st

from kinship_daemon.evaluate.prefix_plan import cut, width

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@st.composite
def requests(draw):
    """Prompts of three tokens only, after one of two preambles: they share a lot."""
    preambles = draw(st.lists(st.lists(st.integers(0, 2), max_size=90), min_size=1, max_size=2))
    count = draw(st.integers(1, 25))
    prompts = [draw(st.sampled_from(preambles)) + draw(TOKENS) for _ in range(count)]
    lengths = [draw(st.integers(1, min(4, len(prompt)))) for prompt in prompts]
    answers = [draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)) for n in lengths]
    return prompts, answers


def segments(roots):
    for segment in roots:
        yield segment
        yield from segments(segment.children)


def texts(roots, before=()):
    """What a path from a root to its end reads."""
    for segment in roots:
        assert segment.start == len(before)
        read = (*before, *segment.tokens)
        if segment.children:
            yield from texts(segment.children, read)
        else:
            yield read


@given(requests())
def test_every_prompt_is_read_and_no_token_of_it_twice(asked):
    prompts, answers = asked
    roots = cut(prompts, answers)
    unique = {tuple(prompt) for prompt in prompts}
    assert sorted(texts(roots)) == sorted(unique)
    computed = sum(len(segment.tokens) for segment in segments(roots))
    assert computed <= sum(map(len, unique))
    assert width(roots) >= max(map(len, unique))


@given(requests())
def test_every_answers_token_is_looked_for_once_where_its_prompt_says(asked):
    prompts, answers = asked
    found = {}
    for segment in segments(cut(prompts, answers)):
        for answer in segment.answers:
            assert 0 <= answer.place < len(segment.tokens)
            key = (answer.request, answer.index)
            assert key not in found
            found[key] = (segment.start + answer.place, answer.token)
            at = segment.start + answer.place
            assert prompts[answer.request][at] == segment.tokens[answer.place]
    assert found == {
        (request, index): (len(prompts[request]) - len(answer) + index, token)
        for request, answer in enumerate(answers)
        for index, token in enumerate(answer)
    }


def test_examples_are_a_root_questions_are_groups_and_choices_are_leaves():
    shown = [9] * 100
    questions = [[i] * 20 for i in range(5)]
    choices = [[20 + i, 30 + i, 40 + i] for i in range(4)]
    prompts = [shown + question + choice for question in questions for choice in choices]
    (root,) = cut(prompts, [[1]] * 20)
    assert root.tokens == tuple(shown)
    assert [group.tokens for group in root.children] == [tuple(question) for question in questions]
    assert [[leaf.tokens for leaf in group.children] for group in root.children] == [
        [tuple(choice) for choice in choices]
    ] * 5


def test_an_odd_prompt_out_does_not_cost_the_others_what_they_share():
    shown = [9] * 200
    prompts = [shown + [i] * 20 for i in range(8)] + [[1, 2, 3]]
    roots = cut(prompts, [[1]] * 9)
    assert sum(len(segment.tokens) for segment in segments(roots)) == 200 + 8 * 20 + 3


def test_documents_of_two_long_texts_are_two_families():
    prompts = [[text] * 300 + [i] * 30 + [j] for text in (8, 9) for i in range(6) for j in range(5)]
    roots = cut(prompts, [[1]] * len(prompts))
    assert [len(root.tokens) for root in roots] == [300, 300]
    assert [len(root.children) for root in roots] == [6, 6]


def test_few_tokens_in_common_are_not_worth_a_pass():
    prompts = [[1, i, *range(i, i + 20)] for i in range(10, 20)]
    (root,) = cut(prompts, [[1]] * 10)
    assert root.tokens == ()
    assert all(not group.children for group in root.children)


def test_prompts_that_begin_each_other_are_cut_without_deep_calls():
    prompts = [[7] * length for length in range(1, 1000)]
    roots = cut(prompts, [[1]] * len(prompts))
    assert len(list(texts(roots))) <= len(prompts)


def test_nothing_is_cut_of_nothing():
    assert cut([], []) == []
    assert width([]) == 0
