"""The members of AutoAttack (Croce & Hein 2020), two of them with less work for the same verdicts.

    apgd-ce, apgd-dlr, apgd-t   pyautoattack's
    fab-t                       pyautoattack's, but the projection needs no sorting
    square                      pyautoattack's, but the network does not see an image again that
                                a square left as it was

Random numbers are drawn as pyautoattack draws them, from the same seeds, in the same order. So the
examples of `square` are the same bit for bit, if the network's logits do not depend on the batch.
Those of `fab-t` differ by rounding.
"""
import math

import torch
from pyautoattack import AutoAttack
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
FEW_CLASSES = {2: ("apgd-ce", "fab-t", "square"),  # the targeted DLR loss needs four logits,
               3: ("apgd-ce", "apgd-dlr", "fab-t", "square")}  # the untargeted one three


def perturb(member: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """This member's adversarial examples of x [B, C, H, W] in [0, 1], all classified as y [B].

    Where it finds none within eps, the image stays as it is.
    """
    standard = AutoAttack(model, eps=eps, seed=seed, device=x.device)
    standard.square = Square(model, eps=eps, seed=seed, device=x.device, n_queries=5000,
                             resc_schedule=False)
    standard.fab = FabT(model, eps=eps, seed=seed, device=x.device)
    standard.attacks_to_run = [member]
    others = model(x[:1]).shape[1] - 1  # its default is nine target classes, whatever there are
    standard.apgd_targeted.n_target_classes = standard.fab.n_target_classes = min(9, others)
    return standard.run_standard_evaluation(x, y, batch_size=len(x))[0]


class Square(SquareAttack):
    """Square (Andriushchenko et al. 2020) in the l-infinity norm.

    A query puts one square on all images. Pixels are at the edge of the ball from the start, so
    that many squares leave an image as it was. The network sees only the images that changed.
    """

    def attack_single_run(self, x: Tensor, y: Tensor) -> tuple[None, Tensor]:
        """x [B, C, H, W], y [B] -> (None, the images of the least margin found)."""
        channels, height, width = x.shape[1:]
        low, high = (x - self.eps).clamp(0, 1), (x + self.eps).clamp(0, 1)
        with torch.no_grad():
            stripes = self.random_choice([len(x), channels, 1, width])
            best = (x + self.eps * stripes).clamp(0, 1)
            least = self._margin(best, y)  # [B]
            for query in range(self.n_queries):
                todo = (least > 0).nonzero().flatten()
                if len(todo) == 0:
                    break
                side = round(math.sqrt(self.p_selection(query) * height * width))
                side = min(max(side, 1), height, width)
                top = int(self.random_int(0, height - side))
                left = int(self.random_int(0, width - side))
                colour = self.random_choice([channels, 1, 1])
                window = (..., slice(top, top + side), slice(left, left + side))
                old = best[window][todo]  # [B', C, side, side]
                new = old + 2.0 * self.eps * colour
                new = new.clamp(low[window][todo], high[window][todo])
                changed = (new != old).flatten(1).any(1)
                todo, new = todo[changed], new[changed]
                if len(todo) == 0:
                    continue
                images = best[todo]
                images[window] = new
                margin = self._margin(images, y[todo])
                better = (margin < least[todo]) | (margin <= 0)
                todo = todo[better]
                best[window][todo] = new[better]
                least[todo] = margin[better]
        return None, best

    def _margin(self, x, y):
        """The logit of y less the highest other one [B]: not above 0 where y is not predicted."""
        logits, own = self.predict(x), y[:, None]
        others = logits.scatter(1, own, -torch.inf)
        return logits.gather(1, own).squeeze(1) - others.max(1).values


class FabT(FABAttack_PT):
    """FAB (Croce & Hein 2020) in the l-infinity norm, towards one target class after another."""

    def __init__(self, model: nn.Module, *, eps: float, seed: int | None, device: torch.device
                 ) -> None:
        super().__init__(model, n_restarts=1, n_iter=100, eps=eps, seed=seed, norm="Linf",
                         targeted=True, device=device)

    def attack_single_run(self, x: Tensor, y: Tensor, use_rand_start: bool = False,
                          is_targeted: bool = True) -> Tensor:
        """The nearest adversarial examples found of x [B, C, H, W], all classified as y [B].

        The target is the class of rank `target_class` among the logits of x, counted from 1.
        """
        with torch.no_grad():
            target = self.predict(x).argsort(1)[:, -self.target_class]
            nearest, point = x.clone(), x.clone()
            distance = torch.full_like(x[:, 0, 0, 0], torch.inf)
            shape = (-1, *[1] * (x.dim() - 1))
            for _ in range(self.n_iter):
                gap, grad = self.get_diff_logits_grads_batch_targeted(point, y, target)
                gap, w = gap[:, 0], grad[:, 0]
                forward = project(point, w, gap)
                back = project(x, w, gap + (w * (x - point)).flatten(1).sum(1))
                a, b = (d.abs().flatten(1).amax(1).clamp(min=1e-8) for d in (forward, back))
                alpha = (a / (a + b)).clamp(max=self.alpha_max).view(shape)
                point = ((point + self.eta * forward) * (1 - alpha)
                         + (x + self.eta * back) * alpha).clamp(0, 1)

                ids = (self.predict(point).argmax(1) != y).nonzero().flatten()
                way = point[ids] - x[ids]
                length = way.abs().flatten(1).amax(1)
                nearer = length < distance[ids]
                nearest[ids[nearer]] = point[ids[nearer]]
                distance[ids[nearer]] = length[nearer]
                point[ids] = x[ids] + way * self.beta
        return nearest


def project(points: Tensor, w: Tensor, excess: Tensor) -> Tensor:
    """The shortest step, in the l-infinity norm, from points in the box [0, 1] to a hyperplane.

    points, w [B, ...]; the hyperplane of normal w is where w . point is lower by excess [B]. Each
    pixel goes by min(room, t), where room is its way to the box. What they gain together is
    concave in t and piecewise linear, so that Newton's method ends at the exact t after a few
    steps, without sorting the rooms. Where the box does not reach the hyperplane, the step goes
    as far as the box does.
    """
    direction = -(w.sign() * excess.sign().where(excess != 0, 1).view(-1, *[1] * (w.dim() - 1)))
    sign, start = direction.flatten(1), points.flatten(1)
    weight, needed = w.abs().flatten(1), excess.abs()
    room = torch.where(sign > 0, 1 - start, start)
    t, slope = torch.zeros_like(needed), None
    for _ in range(weight.shape[1]):  # the pixels that still move are fewer after each step
        before, slope = slope, (weight * (room > t[:, None])).sum(1)
        if before is not None and torch.equal(slope, before):
            break
        gain = (weight * room.minimum(t[:, None])).sum(1)
        t = torch.where(slope > 0, t + (needed - gain) / slope, torch.inf)
    return (sign * room.minimum(t[:, None])).view_as(points)
