"""Chat templates that behave as those of well-known models do, in words of their own.

Of plain conversations, with and without a prompt for the next reply and with thinking on, off or unsaid, these render
what the real ones do, but for the words of preambles that some put before the rules. Tools and images are left out.
Where wheels on PyPI carry the real texts, test_templates.py compares them; where they do not, a comment says so.
"""

from dataclasses import dataclass

RULES = "Rules."
THINK = ("<think>", "</think>")
NO_THOUGHT = "<think>\n\n</think>\n\n"
NO_GEMMA_THOUGHT = "<|channel>thought\n<channel|>"


@dataclass
class Model:
    """A template and what is expected of it. `opening` ("...": text of the template's own) and `following` have "{}"
    where the observation goes; `following` begins with the token that ends a reply."""

    template: str  # the text, or the name under which a wheel has it
    opening: str
    following: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    pad: str | None = None
    plain: tuple[str, ...] = ()  # added tokens that are no special ones
    rstrip: bool = False  # its special tokens take the white space behind them in
    has_system: bool = True  # otherwise the rules open the first user message
    rerendered: tuple[str, str] = (
        "",
        "",
    )  # rendered again, the template replaces the first by the second in the history
    channel: str = ""  # what the template leaves to the model before the text of a reply
    thinks: bool = False  # a reply begins with a thought unless enable_thinking says no

    @property
    def end(self) -> str:
        [end] = [token for token in self.special if self.following.startswith(token)]
        return end


def chatml(thought=""):
    """Opening and following turns in ChatML, where a reply may begin with an empty thought."""
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n" + thought
    return f"<|im_start|>system\n{RULES}<|im_end|>\n{turn}", f"<|im_end|>\n{turn}"


def llama(facts=""):
    turn = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    return (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{facts}{RULES}<|eot_id|>{turn}",
        "<|eot_id|>" + turn,
    )


QWEN_TOKENS = dict(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
    plain=(*THINK, "<tool_call>", "</tool_call>"),
)
LLAMA_TOKENS = dict(
    special=(
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
    ),
    bos="<|begin_of_text|>",
)
PHI_TOKENS = dict(
    special=("<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
    eos="<|endoftext|>",
    bos="<s>",
    pad="<|endoftext|>",
    rstrip=True,
)
GEMMA_4_TOKENS = dict(
    special=("<pad>", "<eos>", "<bos>", "<unk>", "<|think|>", "<|channel>", "<channel|>", "<|turn>", "<turn|>"),
    eos="<turn|>",
    bos="<bos>",
    pad="<pad>",
)

# Every text is trimmed. A thought is kept only behind the last question: the last user message that is not what a tool
# answered. There must be one.
QWEN_3_5 = (
    "{% set at = namespace(question=-1) %}"
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('the system message comes first') }}{% endif %}"
    "{% set text = m.content | trim %}{% if m.role == 'user' "
    "and not (text.startswith('<tool_response>') and text.endswith('</tool_response>')) %}"
    "{% set at.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% if at.question < 0 %}{{ raise_exception('there is no question') }}{% endif %}"
    "{% for m in messages %}{% set text = m.content | trim %}{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% if '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1] | trim %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > at.question %}{% set text = '<think>\n' + thought + '\n</think>\n\n' + text %}{% endif %}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{{ '<think>\n' if enable_thinking | default(BY_DEFAULT) else '<think>\n\n</think>\n\n' }}{% endif %}"
)

# Every text is trimmed; replies lose whatever is in a channel. Thinking has to be asked for, and the system turn then
# says so. Otherwise the larger models (31B) get an empty thought, the smaller ones (E2B) none; no wheel has the larger
# ones' template.
GEMMA_4 = (
    "{{ bos_token }}{% set turns = messages %}{% set thinking = enable_thinking | default(false) %}"
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% endif %}"
    "{% if thinking or messages[0].role == 'system' %}"
    "{{ '<|turn>system\n' + ('<|think|>\n' if thinking else '') }}"
    "{{ messages[0].content | trim if messages[0].role == 'system' else '' }}{{ '<turn|>\n' }}{% endif %}"
    "{% for m in turns %}{% set text = m.content %}{% if m.role == 'assistant' %}"
    "{% set text %}{% for part in m.content.split('<channel|>') %}{{ part.split('<|channel>')[0] }}{% endfor %}"
    "{% endset %}{% endif %}"
    "{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + text | trim + '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}EMPTY_THOUGHT{% endif %}"
)
EMPTY_THOUGHT = "{{ '' if thinking else '<|channel>thought\n<channel|>' }}"

# No switch for thinking: whether a model of this family thinks is in its weights. Replies before the last user message
# lose what is before a </think>.
LFM_2_5 = (
    "{{ bos_token }}{% set at = namespace(question=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set at.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' and loop.index0 < at.question and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1] | trim %}{% endif %}"
    "{% if text or m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Not in the wheels. Texts are shown as they are, and a conversation without rules gets some.
GRANITE_4 = (
    "{% set header = '<|start_of_role|>%s<|end_of_role|>' %}"
    "{% if messages[0].role != 'system' %}{{ header % 'system' + 'Be of use.<|end_of_text|>\n' }}{% endif %}"
    "{% for m in messages %}{{ header % m.role + m.content + '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ header % 'assistant' }}{% endif %}"
)

# Not in the wheels. The system turn tells the day and whether to think, which a switch in the rules decides before
# enable_thinking does; another switch leaves these out. Switches do not stay in the text. As published, the system turn
# has no end token; an edition made for other programs has one, and tells no day. Without thinking every reply begins
# with an empty thought, in the history too.
SMOLLM_3 = (
    "{% set mode = '/think' if enable_thinking | default(true) else '/no_think' %}{% set rules = '' %}"
    "{% if messages[0].role == 'system' %}{% set rules = messages[0].content %}"
    "{% if '/no_think' in rules %}{% set mode = '/no_think' %}"
    "{% elif '/think' in rules %}{% set mode = '/think' %}{% endif %}{% endif %}"
    "{% set own = rules.replace('/no_think', '').replace('/think', '').rstrip() %}"
    "{{ '<|im_start|>system\n' }}"
    "{% if '/system_override' in rules %}{{ own.replace('/system_override', '').rstrip() + '<|im_end|>\n' }}{% else %}"
    "{{ 'Day ' + strftime_now('%d %B %Y') + '\nMode ' + mode + '\n\n' }}"
    "{{ (own or 'You are SmolLM') + '\n\n' }}{% endif %}"
    "{% set start = '<|im_start|>assistant\n' + ('' if mode == '/think' else '<think>\n\n</think>\n') %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ start + m.content.lstrip('\n') + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ start }}{% endif %}"
)

# Not in the wheels. There is no prompt for a reply, which follows the user's turn at once; roles must alternate, and an
# empty reply is refused. A conversation without rules gets some.
MINISTRAL_3 = (
    "{{ bos_token }}{% set turns = messages %}{% set rules = 'Be of use.' %}{% if messages[0].role == 'system' %}"
    "{% set turns = messages[1:] %}{% set rules = messages[0].content %}{% endif %}"
    "{{ '[SYSTEM_PROMPT]' + rules + '[/SYSTEM_PROMPT]' }}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif not m.content %}{{ raise_exception('a reply is empty') }}{% else %}{{ m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)

# Every text is trimmed; the system turn begins with a day: that of the release in 3.1, today in 3.2.
LLAMA_3 = (
    "{{ bos_token }}{% set turns = messages %}{% set rules = '' %}{% if messages[0].role == 'system' %}"
    "{% set turns = messages[1:] %}{% set rules = messages[0].content | trim %}{% endif %}"
    "{% set header = '<|start_header_id|>%s<|end_header_id|>\n\n' %}"
    "{{ header % 'system' + 'Your knowledge ends in 2023\nDay ' + DAY + '\n\n' + rules + '<|eot_id|>' }}"
    "{% for m in turns %}{{ header % m.role + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ header % 'assistant' }}{% endif %}"
)

# Not in the wheels. The rules are trimmed, other texts are not, and no day is told.
LLAMA_4 = (
    "{{ bos_token }}{% set header = '<|header_start|>%s<|header_end|>\n\n' %}"
    "{% for m in messages %}{% set text = m.content | trim if m.role == 'system' else m.content %}"
    "{{ header % m.role + text + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ header % 'assistant' }}{% endif %}"
)

# No white space between turns; a conversation that is over ends with eos.
PHI_4_MINI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt else eos_token }}"
)

# Harmony: the system turn is the template's own, the rules are a developer's. A reply is asked for by the role alone,
# and the model is to write its channel: thoughts in one, the answer in another. The history keeps answers only; a reply
# that ends the whole text ends with the token by which the model stops. No switch turns the thoughts off.
GPT_OSS = (
    "{{ '<|start|>system<|message|>Day ' + strftime_now('%Y-%m-%d') + '\nEffort ' }}"
    "{{ reasoning_effort | default('medium') + '\nEvery message names its channel<|end|>' }}"
    "{% set turns = messages %}{% if messages[0].role in ['system', 'developer'] %}{% set turns = messages[1:] %}"
    "{{ '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '\n\n<|end|>' }}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{% else %}{% if '<|channel|>' in m.content and '<|message|>' in m.content %}"
    "{{ raise_exception('a reply has channels in it') }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
GPT_OSS_TURN = "<|start|>user<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>"
GPT_OSS_SHAPE = dict(
    opening=f"<|start|>system<|message|>...<|end|><|start|>developer<|message|># Instructions\n\n{RULES}\n\n<|end|>"
    + GPT_OSS_TURN,
    following="<|end|>" + GPT_OSS_TURN,
    special=(
        *("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>"),
        *("<|start|>", "<|end|>", "<|message|>", "<|call|>"),
    ),
    eos="<|return|>",
    bos="<|startoftext|>",
    pad="<|endoftext|>",
    channel="<|channel|>final<|message|>",
)


def gemma_4(thought=""):
    turn = "<|turn>user\n{}<turn|>\n<|turn>model\n" + thought
    return f"<bos><|turn>system\n{RULES}<turn|>\n{turn}", f"<turn|>\n{turn}"


def granite_4():
    turn = "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
    return f"<|start_of_role|>system<|end_of_role|>{RULES}<|end_of_text|>\n{turn}", f"<|end_of_text|>\n{turn}"


def smollm_3(end=""):
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n"
    return f"<|im_start|>system\n...{RULES}\n\n{end}{turn}", f"<|im_end|>\n{turn}"


def llama_4():
    turn = "<|header_start|>user<|header_end|>\n\n{}<|eot|><|header_start|>assistant<|header_end|>\n\n"
    return f"<|begin_of_text|><|header_start|>system<|header_end|>\n\n{RULES}<|eot|>{turn}", f"<|eot|>{turn}"


SMOLLM_TOKENS = dict(
    special=("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    pad="<|im_end|>",
    plain=THINK,
    thinks=True,
)

DOUBLES = {
    "Qwen3.5": Model(
        QWEN_3_5.replace("BY_DEFAULT", "true"),
        *chatml(NO_THOUGHT),
        **QWEN_TOKENS,
        rerendered=(NO_THOUGHT, ""),
        thinks=True,
    ),
    "Qwen3.5, 2B and smaller": Model(
        QWEN_3_5.replace("BY_DEFAULT", "false"), *chatml(NO_THOUGHT), **QWEN_TOKENS, rerendered=(NO_THOUGHT, "")
    ),
    "Gemma-4": Model(
        GEMMA_4.replace("EMPTY_THOUGHT", EMPTY_THOUGHT),
        *gemma_4(NO_GEMMA_THOUGHT),
        **GEMMA_4_TOKENS,
        rerendered=(NO_GEMMA_THOUGHT, ""),
    ),
    "Gemma-4-E2B": Model(GEMMA_4.replace("EMPTY_THOUGHT", ""), *gemma_4(), **GEMMA_4_TOKENS),
    "LFM2.5": Model(
        LFM_2_5,
        "<|startoftext|>" + chatml()[0],
        chatml()[1],
        ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        bos="<|startoftext|>",
        pad="<|pad|>",
        plain=THINK,
    ),
    "Granite-4": Model(
        GRANITE_4,
        *granite_4(),
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|pad|>"),
        eos="<|end_of_text|>",
        bos="<|end_of_text|>",
        pad="<|pad|>",
    ),
    "SmolLM3": Model(SMOLLM_3, *smollm_3(), **SMOLLM_TOKENS),
    "SmolLM3, other edition": Model(
        SMOLLM_3.replace("'\n\n' }}{% endif %}", "'\n\n<|im_end|>\n' }}{% endif %}"),
        *smollm_3("<|im_end|>\n"),
        **SMOLLM_TOKENS,
    ),
    "Ministral-3": Model(
        MINISTRAL_3,
        f"<s>[SYSTEM_PROMPT]{RULES}[/SYSTEM_PROMPT][INST]{{}}[/INST]",
        "</s>[INST]{}[/INST]",
        ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]"),
        eos="</s>",
        bos="<s>",
        pad="<pad>",
    ),
    "Llama-3.1": Model(
        LLAMA_3.replace("DAY", "'26 Jul 2024'"), *llama("..."), **LLAMA_TOKENS, eos="<|eot_id|>", pad="<|eot_id|>"
    ),
    "Llama-3.2": Model(
        LLAMA_3.replace("DAY", "strftime_now('%d %b %Y')"), *llama("..."), **LLAMA_TOKENS, eos="<|eot_id|>"
    ),
    "Llama-4": Model(
        LLAMA_4,
        *llama_4(),
        ("<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>"),
        eos="<|eot|>",
        bos="<|begin_of_text|>",
    ),
    "Phi-4-mini": Model(
        PHI_4_MINI,
        f"<|system|>{RULES}<|end|><|user|>{{}}<|end|><|assistant|>",
        "<|end|><|user|>{}<|end|><|assistant|>",
        **PHI_TOKENS,
    ),
    "gpt-oss": Model(GPT_OSS, **GPT_OSS_SHAPE),
}
