"""Every name of a torch optimizer: whose it is in a layer around one, and why.

The table is the contract of :class:`dp.optimizer._transparent.TransparentOptimizer`. It covers
what ``torch.optim.Optimizer`` defines, what its instances hold, and what learning-rate
schedulers, gradient scalers and trainers put on them. The tests hold it against torch
itself, so a name that a new release adds must be sorted before they pass.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


__all__ = ("COMPOSED", "FORWARDED", "OWN", "REFUSED")

# Read, written and deleted on the wrapped optimizer; nothing is kept on the layer.
FORWARDED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "param_groups": "schedulers and trainers write here what the update reads",
        "state": "loading and moving to a device replace it",
        "defaults": "schedulers ask it for momentum and betas",
        "any name that only the wrapped optimizer has": (
            "knobs, properties, train() and eval(): read there, and data written there"
        ),
    }
)

# Of this layer alone; the wrapped optimizer has its own of the same name.
OWN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "original_optimizer": "the wrapped optimizer",
        "_optimizer_step_pre_hooks": "hooks fire once, with the object that was given",
        "_optimizer_step_post_hooks": "as above",
        "_optimizer_state_dict_pre_hooks": "as above",
        "_optimizer_state_dict_post_hooks": "as above",
        "_optimizer_load_state_dict_pre_hooks": "as above",
        "_optimizer_load_state_dict_post_hooks": "as above",
        "register_step_pre_hook": "torch's, on this layer's hooks",
        "register_step_post_hook": "as above",
        "register_state_dict_pre_hook": "as above",
        "register_state_dict_post_hook": "as above",
        "register_load_state_dict_pre_hook": "as above",
        "register_load_state_dict_post_hook": "as above",
        "profile_hook_step": "torch's; a static method",
        "_optimizer_step_code": "torch's; where its tracer looks for a step",
        "_zero_grad_profile_name": "profiles name the class of this layer",
        "_warned_capturable_if_run_uncaptured": "torch's; whether it warned",
        "_accelerator_graph_capture_health_check": "torch's; reads forwarded groups",
        "_cuda_graph_capture_health_check": "as above, by its old name",
        "_group_tensors_by_device_and_dtype": "torch's; a static method",
        "_process_value_according_to_param_policy": "as above",
        "OptimizerPreHook": "torch's; a type",
        "OptimizerPostHook": "as above",
        "_opt_called": "a scheduler's mark on the object that it was given",
        "a method that is assigned": (
            "a patched step stays where it was set; forwarded, it would call itself"
        ),
        "_step_supports_amp_scaling": "the scaler leaves unscaling to this layer",
        "grad_scale": "the scaler's mark; a fused inner optimizer would divide by it",
        "found_inf": "as above; it would skip the step",
        "_is_accelerate_prepared": "accelerate's mark on the object that it was given",
    }
)

# This layer does its part and calls the wrapped optimizer.
COMPOSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "__init__": "not torch's, which would overwrite what is forwarded",
        "step": "the update; what comes before it is the subclass's",
        "zero_grad": "a subclass drops its own gradients too",
        "add_param_group": "the wrapped optimizer may override it",
        "state_dict": "the wrapped optimizer's, with what this layer keeps",
        "load_state_dict": "as above",
        "__repr__": "the wrapped optimizer's, with the name of this class",
        "__dir__": "both",
        "__getattr__": "reads what is in no row",
        "__setattr__": "writes data that only the wrapped optimizer has",
        "__delattr__": "deletes it",
        "__getstate__": "without hooks and patches, which would act on the original",
        "__setstate__": "not torch's, which would rewrite step on the class",
        "_patch_step_function": "step is hooked when the class is made; names profiles",
    }
)

# Raises, with the reason.
REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "original_optimizer.step, called from outside": (
            "would update without clipping, noise and accounting"
        ),
        "step of any other optimizer of these parameters": "as above",
        "step(closure) where the wrapped step requires one": (
            "it evaluates the loss again and again within one release"
        ),
        "param_groups in place of an optimizer": (
            "a class made from this one would build itself from raw gradients"
        ),
    }
)
