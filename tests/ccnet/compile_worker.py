"""The compiled head compared with the eager one, run as a script by test_compile.py: python compile_worker.py FILE.

A separate process, because dynamo must not trace the import hook that checks shapes in tests.
"""

import copy
import sys

import torch
import torch._dynamo.testing
from torch import Tensor, nn

from ccnet import RCCAHead
from ccnet.layers import global_rows


def random_head() -> RCCAHead:
    torch.manual_seed(0)
    head = RCCAHead(64, 32, 3, recurrence=2)
    nn.init.constant_(head.attention.gamma, 0.7)
    return head


def step(head: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Scores, gradients and buffers of one forward and backward pass; dropout has the same seed in every call."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    logits = head(x)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    gradients = {f"gradient/{name}": parameter.grad for name, parameter in head.named_parameters()}
    return {"logits": logits.detach(), "gradient/x": x.grad, **gradients, **dict(head.named_buffers())}


def compiled_and_eager(head: RCCAHead) -> dict[str, dict[str, Tensor] | int]:
    x = torch.randn(2, 64, 6, 7)
    num_breaks = torch._dynamo.explain(copy.deepcopy(head))(x).graph_break_count
    torch.compiler.reset()
    compiled = copy.deepcopy(head)
    compiled.compile(fullgraph=True, backend="aot_eager")  # in place: the names of the parameters stay
    return {"eager": step(head, x), "compiled": step(compiled, x), "num_graph_breaks": num_breaks}


@torch.no_grad()
def other_sizes(head: RCCAHead) -> list[tuple[Tensor, Tensor]]:
    """(eager, compiled) scores of three sizes from one compilation; a second compilation is an error."""
    torch.compiler.reset()
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    scores = []
    for stance, size in (("default", (2, 6, 7)), ("fail_on_recompile", (2, 9, 5)), ("fail_on_recompile", (3, 4, 11))):
        x = torch.randn(size[0], 64, *size[1:])
        with torch.compiler.set_stance(stance):
            scores.append((head(x), compiled(x)))
    return scores


def parts_of_a_batch(head: RCCAHead) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """(eager, compiled) scores of six passes over a global batch of 12, and the number of compilations they took."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(head, fullgraph=True, backend=counter)
    x, scores = torch.randn(12, 64, 6, 7), []
    for first in range(0, 12, 2):
        pair = []
        for each in (head, compiled):
            torch.manual_seed(1)
            with global_rows(first, 12):
                pair.append(each(x[first : first + 2]).detach())
        scores.append(tuple(pair))
    return scores, counter.frame_count


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {
        "evaluation": compiled_and_eager(random_head().eval()),
        "training": compiled_and_eager(random_head().train()),
        "sizes": other_sizes(random_head().eval()),
        "parts": parts_of_a_batch(random_head().train()),
    }
    torch.save(results, sys.argv[1])
