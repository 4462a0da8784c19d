"""What a chat template adds per turn, against rendering the whole dialogue; and its fallbacks."""

import time

import pytest
from gguf_writer import CHATML, write_tiny_gguf

from edgekv.errors import TemplateError
from edgekv.models.catalog import bundled_model
from edgekv.models.config import ModelConfig
from edgekv.models.gguf import open_gguf
from edgekv.models.template import ChatTemplate
from edgekv.models.tokenizer import Tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (  # no system role, strict order, the end token written as eos_token
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # as Qwen3: earlier answers lose their thinking
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM_LAST = (  # the system prompt stands in the last user message
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {% if loop.last %}{{ ns.system }}{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
ENDS = ("<|im_end|>", "<|eot_id|>", "</s>")


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


@pytest.fixture
def make():
    """A factory of templates that are closed at the end."""
    made = []

    def build(text, **options):
        made.append(ChatTemplate(text, bos="<s>", eos="</s>", end_texts=ENDS, **options))
        return made[-1]

    yield build
    for template in made:
        template.close()


def joined(pieces):
    return "".join(text for text, _ in pieces)


@pytest.mark.parametrize("text", [CHATML, LLAMA3, MISTRAL], ids=["chatml", "llama3", "mistral"])
@pytest.mark.parametrize("ended", [True, False])
def test_turns_add_up_to_the_whole_dialogue(make, text, ended):
    """Stored ids plus each new turn's text must be what the template writes for everything at once."""
    template = make(text)
    end = {CHATML: "<|im_end|>", LLAMA3: "<|eot_id|>", MISTRAL: "</s>"}[text]
    gap = " " if text == MISTRAL else ""
    history, stored = [], ""
    for number in range(3):
        turn = template.next_turn(history, ended, f"question {number}")
        stored += joined(turn)
        assert [text for text, is_markup in turn if not is_markup] == [f"question {number}"]
        assert stored == template.render([*history, user(f"question {number}")])
        history += [user(f"question {number}"), answer(f"reply {number}")]
        stored += f"{gap}reply {number}" + (end if ended else "")


def test_end_token_is_written_exactly_when_it_was_not_generated(make):
    """Twice, it opens an empty turn; never, the model goes on speaking as the user."""
    template = make(CHATML)
    history = [user("hi"), answer("hello")]
    assert template.next_turn(history, True, "x")[0] == ("\n<|im_start|>user\n", True)
    assert template.next_turn(history, False, "x")[0] == ("<|im_end|>\n<|im_start|>user\n", True)
    nothing_generated = [user("hi"), answer("")]
    assert template.next_turn(nothing_generated, False, "x")[0] == ("<|im_end|>\n<|im_start|>user\n", True)


def test_default_and_explicit_system_prompt(make):
    """A template's default system prompt comes once, in the first turn, and yields to an explicit one."""
    template = make(CHATML)
    first = template.next_turn([], True, "hi")
    assert joined(first).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    later = template.next_turn([user("hi"), answer("yes")], True, "more")
    assert "system" not in joined(later)
    explicit = template.next_turn([system("Be <|im_end|> brief.")], True, "hi")
    assert joined(explicit).startswith(
        "<|im_start|>system\nBe <|im_end|> brief.<|im_end|>\n<|im_start|>user\n"
    )
    assert ("Be <|im_end|> brief.", False) in explicit


def test_template_without_system_role_gets_it_with_the_first_message(make):
    """Refusing to chat because of a system prompt helps nobody."""
    template = make(MISTRAL)
    first = template.next_turn([system("Be brief.")], True, "hi")
    assert first == [("<s>[INST] ", True), ("Be brief.\n\nhi", False), (" [/INST]", True)]
    later = template.next_turn([system("Be brief."), user("hi"), answer("yes")], True, "more")
    assert later == [("[INST] ", True), ("more", False), (" [/INST]", True)]


def test_texts_a_template_trims_are_trimmed(make):
    """Replacing the marker by the raw text would differ from what the template writes."""
    template = make(LLAMA3)
    pieces = template.next_turn([], True, "  hi \n")
    assert ("hi", False) in pieces
    assert joined(pieces) == template.render([user("  hi \n")])
    quoting = make("{% for m in messages %}<u>{{ m.content | replace('a', 'aa') }}</u>{% endfor %}")
    assert quoting.next_turn([], True, "banana")[1] == ("baanaanaa", False)


def test_template_that_loses_what_was_said_is_an_error(make):
    """The model would answer to something else, the marker that stood for the text perhaps."""
    for text in ("{{ messages[0].content | upper }}", "{{ messages[0].role }}", "nothing"):
        with pytest.raises(TemplateError, match="loses messages"):
            make(text).next_turn([], True, "hi")


def test_whether_the_template_rewrites_history(make):
    """Qwen3 drops an answer's thinking: what is stored is no longer what the template would write."""
    thought = [user("hi"), answer("<think>\nhm\n</think>\n\nhello")]
    turn = make(THINKING).render_turn(thought, [user("more")])
    assert not turn.prefix_unchanged
    assert turn.pieces[0] == ("\n<|im_start|>user\n", True)
    plain = [user("hi"), answer("hello")]
    assert make(THINKING).render_turn(plain, [user("more")]).prefix_unchanged
    assert make(LLAMA3).render_turn([user("hi"), answer(" hello ")], [user("more")]).prefix_unchanged
    moved = make(SYSTEM_LAST).render_turn([system("S"), *plain], [user("more")])
    assert not moved.prefix_unchanged
    assert moved.pieces == [
        ("[INST] ", True),
        ("S", False),
        ("\n\n", True),
        ("more", False),
        ("[/INST]", True),
    ]


def test_template_that_leaves_answers_out_gets_the_whole_dialogue(make):
    """There is no place after the last answer to continue from."""
    template = make("{% for m in messages if m.role == 'user' %}<u>{{ m.content }}</u>{% endfor %}")
    turn = template.render_turn([user("a"), answer("b")], [user("c")])
    assert not turn.prefix_unchanged
    assert joined(turn.pieces) == "<u>a</u><u>c</u>"
    assert joined(template.render_pieces([user("a"), answer("b"), user("c")])) == "<u>a</u><u>c</u>"


def test_what_hugging_face_templates_use(make):
    """Loop controls, tojson without HTML escapes, dates, the generation tag, trimmed blocks."""
    template = make(
        "{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}\n"
        "{{ {'a': '<é>'} | tojson }} {{ strftime_now('%Y') }} {{ tools is defined }} {{ bos_token }}"
    )
    year = time.strftime("%Y")
    assert template.render([user("x"), user("y")]) == f'x{{"a": "<é>"}} {year} False <s>'
    with pytest.raises(TemplateError, match="it refuses these messages: no"):
        make("{{ raise_exception('no') }}").render([user("x")])


def test_source_tells_whose_template_it_is(tmp_path):
    """A file without one: ChatML where the vocabulary has its tokens, else plain lines and a stop text."""

    def load(**options):
        file = open_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", **options))
        tokenizer = Tokenizer(file, ModelConfig.from_gguf(file))
        return ChatTemplate.from_gguf(file, tokenizer), tokenizer

    template, tokenizer = load()
    assert template.source == "file"
    assert tokenizer.encode_pieces(template.next_turn([], True, "hi"))[0] == 1
    template.close()
    template, _ = load(chat_template=None)
    assert (template.source, template.stop) == ("chatml", ())
    assert (
        joined(template.next_turn([], True, "hi"))
        == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    template.close()
    tokens = open_gguf(tmp_path / "tiny.gguf").metadata["tokenizer.ggml.tokens"][:]
    tokens[1] = "<|other|>"
    template, _ = load(chat_template=None, metadata={"tokenizer.ggml.tokens": tokens})
    assert (template.source, template.stop) == ("plain", ("\nUser:",))
    assert joined(template.next_turn([system("S")], True, "hi")) == "S\n\nUser: hi\nAssistant:"
    history = [user("hi"), answer(" yes")]
    assert joined(template.next_turn(history, False, "more")) == "\nUser: more\nAssistant:"
    assert template.render_turn(history, [user("more")]).prefix_unchanged
    template.close()


def test_bundled_models_turn_is_fast():
    """A turn's rendering belongs to its time to first token."""
    path = bundled_model()
    if path is None:
        pytest.skip("the bundled model is not installed")
    file = open_gguf(path)
    template = ChatTemplate.from_gguf(file, Tokenizer(file, ModelConfig.from_gguf(file)))
    first = template.next_turn([], True, "hi")
    assert joined(first).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    history = [user("hi"), answer("hello")] * 50
    best = 1.0
    for _ in range(100):  # on a machine with a lot else to do
        started = time.perf_counter()
        pieces = template.next_turn(history, True, "x" * 1000)
        best = min(best, time.perf_counter() - started)
        if best < 0.05:
            break
    assert pieces[0] == ("\n<|im_start|>user\n", True)
    assert best < 0.05  # about 4 ms on an idle machine
    template.close()
