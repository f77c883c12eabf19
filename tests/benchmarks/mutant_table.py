"""One-line defects of ``dp``, and the tests that should notice each.

A mutant replaces text that occurs exactly once under its place, by text of one line.
The places are prefixes: ``per_sample`` is every file of that package.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One defect.

    Attributes:
        place: Under which path of ``dp`` the text is.
        old: The text, which occurs there once.
        new: What it becomes.
        breaks: What is wrong then.
        tests: Paths under ``tests/dp``, in the order in which they run.
    """

    place: str
    old: str
    new: str
    breaks: str
    tests: str


OPTIMIZER = "test_optimizer.py test_optimizer_many.py test_audit.py"
SAMPLING = "test_sampling.py test_sampling_statistics.py"
NOISE = "test_noise.py test_noise_rounding.py test_noise_statistics.py"
KERNEL = "test_noise_kernel.py"
DEVICE = "test_noise_device.py test_noise_chacha.py"
ENGINE = "per_sample test_optimizer.py"
BY_OWNER = "per_sample/test_by_owner.py"
REFERENCE = "per_sample/test_reference.py per_sample/test_verified_files.py"
ISOLATION = "per_sample/test_own_backward.py per_sample/test_units_apart.py per_sample/test_verification.py per_sample/test_rules_of_owners.py per_sample/test_random_graphs.py per_sample/test_mixing.py per_sample/test_arguments.py"
LEDGER = "test_ledger.py test_optimizer.py"
ACCOUNTING = "test_accounting.py test_calibration.py"

MUTANTS = (
    # Clipping
    Mutant("_mechanism/mechanism", ".squared_norms(groups).sqrt()", ".squared_norms(groups)", "the root of the squared norm is dropped", OPTIMIZER),
    Mutant("clipping", "share = self.max_grad_norm / math.sqrt(max(1, len(norms_GB)))", "share = self.max_grad_norm", "every layer is clipped to all of C", "test_clipping.py"),
    Mutant("clipping", "_sensitivity(math.hypot(*self.max_grad_norms), relation)", "_sensitivity(max(self.max_grad_norms), relation)", "the sensitivity of groups is that of the largest", "test_clipping.py"),
    Mutant("clipping", "(norms_GB + self.stability)", "self.stability", "automatic clipping does not divide by the norm", "test_clipping.py"),
    Mutant("clipping", "return 1 - _MARGIN_EPS * torch.finfo(dtype).eps", "return 1.0", "no margin for rounding", "test_clipping.py"),
    Mutant("clipping", "(bounds_G[:, None] / norms_GB).clamp(max=1.0)", "bounds_G[:, None] / norms_GB", "small gradients are scaled up", "test_clipping.py"),
    Mutant("clipping", "return torch.where(normal_GB, factors_GB, 0.0)", "return factors_GB", "a NaN norm is a NaN factor", "test_clipping.py"),
    Mutant("clipping", "(2.0 if relation ==", "(1.0 if relation ==", "replacing one counts as adding one", "test_clipping.py"),
    Mutant("optimizer/_validate", "if sensitivity != plan.max_grad_norm_at(0):", "if False:", "the clipping rule need not fit the plan", OPTIMIZER),
    # Noise
    Mutant("_mechanism/mechanism", "return noise_multiplier * batch.max_grad_norm", "return noise_multiplier", "sigma without C", OPTIMIZER),
    Mutant("_mechanism/mechanism", "used = self.noise.add_(share, stddev=stddev)", "used = self.noise.add_(share[:1], stddev=stddev)", "no noise on the bias", OPTIMIZER),
    Mutant("_mechanism/mechanism", "            self._add_noise(share, stddev)  # Private", "            batch.num_samples and self._add_noise(share, stddev)  # Private", "no noise on an empty batch", OPTIMIZER),
    Mutant("_mechanism/mechanism", "if used != stddev:", "if False:", "other noise than was charged goes unnoticed", OPTIMIZER),
    Mutant("noise", "            stddev=stddev,", "            stddev=stddev / 2,", "half the noise", NOISE),
    Mutant("noise", "np.where(inner, first * scale, np.nan)", "np.where(inner, first * scale / 1.01, np.nan)", "one percent too little noise", NOISE),
    Mutant("noise", "units_C - whole_C,  #", "units_C * 0,  #", "the fraction of a sum is lost before noise", NOISE),
    Mutant("noise", "x_N[left.where] = self._decided(left)", "_ = self._decided(left)", "sums that float32 left get no noise", NOISE),
    Mutant("noise", "FLOAT32_ERROR: Final = 2.0**-16", "FLOAT32_ERROR: Final = -1.0", "float32 rounds what it cannot decide", NOISE),
    Mutant("noise", "FLOAT32_ERROR_OF_SUM: Final = 2.0**-23", "FLOAT32_ERROR_OF_SUM: Final = 0.0", "large sums are rounded to float32 with their noise", NOISE),
    Mutant("noise", "_LATTICE_BITS: Final = 4", "_LATTICE_BITS: Final = 12", "the lattice is finer than float32 can decide", NOISE),
    Mutant("noise", "else piece.view_as(part)", "else pieces[0].view_as(part)", "parameters share their noise", NOISE),
    Mutant("noise", 'int.from_bytes(new_key()[:8], "little", signed=True)', "0", "the fast generator has a fixed seed", NOISE),
    Mutant("noise", "if self._process != os.getpid():", "if False:", "a forked process repeats its parent's noise", NOISE),
    Mutant("_keystream", "return os.urandom(KEY_BITS // 8)", "return bytes(KEY_BITS // 8)", "one key for ever: a restart repeats noise and draws", NOISE + " " + SAMPLING),
    # Per-example gradients
    Mutant("per_sample", "norms[group_of[index]] += added_B.to(device)", "norms[group_of[index]] = added_B.to(device)", "the norm is that of the last large parameter", ENGINE),
    Mutant("per_sample", "norms[flat.group] += flat.part", "norms[flat.group] = flat.part", "the norm forgets what came before", ENGINE),
    Mutant("per_sample", "nan_to_num_(nan=torch.inf)", "nan_to_num_(nan=0.0)", "an example whose loss is NaN is kept", ENGINE),
    Mutant("per_sample", "if torch.is_autocast_enabled(device_type):", "if False:", "an autocast around backward rounds clipped sums", "per_sample/test_precision.py"),
    Mutant("per_sample", 'backend.fp32_precision = "ieee"', "pass", "TF32 reaches norms and clipped sums", "per_sample/test_precision.py"),
    Mutant("per_sample", "        if self._rounds:", "        if False:", "clipped sums are rounded to 16 bits by a parametrization", "per_sample/test_precision.py"),
    Mutant("per_sample", "dropped_GB = factors_GB == 0", "dropped_GB = factors_GB < 0", "zero times infinity reaches the sum", ENGINE),
    Mutant("per_sample", "torch.where(low == high, high, MIXED))", "high)", "where units meet, the last one owns the row", ISOLATION),
    Mutant("per_sample", "if bool((written.gather(axis, index) == rows).all()):", "if True:", "a row that two units take is the last one's", ISOLATION),
    Mutant("per_sample", "        if not is_static:", "        if False:", "an index that changes is not looked at again", ISOLATION),
    Mutant("per_sample", "return owners if self._is_confirmed(owners) else None", "return owners", "a backward that clamps gives rows to other units", ISOLATION),
    Mutant("per_sample", "return EVERYBODYS  # Summed over the units.", "return owners", "what is spread over the batch is one example's", ISOLATION),
    Mutant("per_sample", "arguments = [read(nodes[place]) for place, read in self._arguments]", "arguments: list[int] = []", "an axis that changes is not noticed", ISOLATION),
    Mutant("per_sample", "if one.rows is not None and not _is_in_order(one.rows, num_units):", "if False:", "rows may be in another order than labels", ISOLATION),
    Mutant("per_sample", "            check_data(known.graph.uses", "            (lambda *_a, **_k: None)(known.graph.uses", "one tensor may be read for two units", ISOLATION),
    Mutant("per_sample", "    if bool((owner_B == MIXED).any()):", "    if False:", "a loss may be made of pieces of two rows", ISOLATION),
    Mutant("per_sample", "return is_first or secrets.randbelow(self._settings.every) == 0", "return False", "nothing is ever verified", ISOLATION),
    Mutant("per_sample", "return bool((close_GU | ~self._compared_U).all())", "return True", "norms are not compared", ISOLATION),
    Mutant("per_sample", "if not self._are_close(one, other, size)", "if False", "sums are not compared", ISOLATION),
    Mutant("per_sample", "exponent_U[owner.clamp(min=0)]", "exponent_U[owner.clamp(min=0, max=0)]", "a node's own backward is confirmed by one power", ISOLATION),
    Mutant("per_sample", 'if not getattr(node, f"_saved_{flag}"):', "if True:", "scale_grad_by_freq divides by the whole batch", ISOLATION),
    Mutant("per_sample", "return any(_is_copy(tensor, public) for public in alike)", "return bool(self._declared)", "once something is public, everything is", ISOLATION),
    Mutant("per_sample", "    if not _adds_up[kind]:", "    if False:", "torch's wrong rules for batching a backward are trusted", ISOLATION),
    Mutant("per_sample", "return bool((owners.rows >= 0).any())", "return False", "rows of one unit's data are taken for shared", ISOLATION),
    Mutant("per_sample", ".double().reciprocal()", ".double()", "the mean over a unit's losses is their sum times their number", ISOLATION),
    Mutant("per_sample", "if name_of(node) not in VIEWS or is_complex:", "if name_of(node) not in VIEWS:", "the imaginary part of an operand is dropped", ISOLATION),
    Mutant("per_sample", "len({*nodes}) == count", "bool(nodes)", "one node in the place of two is taken for them", ENGINE),
    Mutant("per_sample", "times_used[id(operand.parameters[0])] == 1", "times_used[id(operand.parameters[0])] >= 1", "a tied parameter is served with its likes", ENGINE),
    Mutant("per_sample", "if values.count(values[0]) != len(values):", "if not values:", "all layers have the first one's scale", ENGINE),
    Mutant("per_sample", "_ROW: Final = 4096", "_ROW: Final = 1 << 40", "long rows are summed in one go", ENGINE),
    Mutant("per_sample", "_GRAM_MARGIN: Final = 4.0", "_GRAM_MARGIN: Final = 0.0", "no margin for gradients that cancel", ENGINE),
    Mutant("per_sample", "return tensor if is_wide else tensor.float()", "return tensor", "norms in the gradients' own precision", ENGINE),
    Mutant("per_sample", "factors_r = factors_B[self.groups.owner_r.to(factors_B.device)]", "factors_r = factors_B[self.groups.owner_r.to(factors_B.device).roll(1)]", "a row is weighed by another unit's factor", BY_OWNER),
    Mutant("per_sample", "slot_r = place_r * length_E[bucket_r] + position_r", "slot_r = place_r * length_E[bucket_r]", "the rows of a unit take each other's place", BY_OWNER),
    Mutant("per_sample", "place_r = rank_r - _starts(num_units_E)[bucket_r]", "place_r = rank_r * 0", "the units of a bucket take each other's place", BY_OWNER),
    Mutant("per_sample", "units = unit_U[first_unit : first_unit + num_units]", "units = unit_U[first_unit : first_unit + num_units].flip(0)", "the norms of a bucket are other units'", BY_OWNER),
    Mutant("per_sample", "total_UP.index_add_(0, part.groups.owner_r, rows_rP)", "total_UP.index_copy_(0, part.groups.owner_r, rows_rP)", "a unit's gradient is that of its last row", BY_OWNER),
    Mutant("per_sample", "whole[groups.owner_r, row_r] = slices[row_r]", "whole[:, row_r] = slices[row_r]", "a slice of an operand is every unit's", BY_OWNER),
    Mutant("per_sample", "owners_L = unit_B[self.owners_L]", "owners_L = self.owners_L", "look-ups count for their row's number, not its unit", BY_OWNER),
    Mutant("per_sample", "not torch.equal(first.unit_R, groups.unit_R)", "False", "outputs with other rows are served as if they had the same", BY_OWNER),
    Mutant("per_sample", "return (None,) * len(grads)", "return grads", "what a rule hands on is added to what its node hands on", "per_sample/test_operations.py"),
    Mutant("per_sample", "context.input_grad += _by_step(", "context.input_grad = _by_step(", "what a rule hands on does not arrive", "per_sample/test_operations.py"),
    Mutant("per_sample", "return states if bool(error <= _TOLERANCE) else None", "return states", "gates are read in a form that they do not have", "per_sample/test_operations.py"),
    Mutant("per_sample", "if all(node in able for node in nodes):", "if nodes:", "a rule hands on what others add to before it is there", "per_sample/test_operations.py"),
    Mutant("per_sample", "virtual = self.units * self.num_experts + self.experts", "virtual = self.units * self.num_experts", "a unit's matrices are added up before the norm", BY_OWNER),
    Mutant("per_sample", "rows = _select(rows, groups.owned_r)", "pass", "a row that is nobody's counts as somebody's", BY_OWNER),
    Mutant("per_sample", "rows.masked_fill(mask_B", "rows.masked_fill(~mask_B", "the good examples are dropped", ENGINE),
    Mutant("per_sample", "known is None or not known.is_as_before(nodes, units.num_units)", "known is None", "what moves rows is looked at once", "per_sample/test_units_apart.py"),
    Mutant("_mechanism", "any(not 0 <= u < ticket.num_samples for u in present)", "False", "units that were not drawn may have losses", "test_units.py"),
    Mutant("_mechanism", "if not self.units.isdisjoint(units):", "if False:", "a unit may be clipped twice", "test_units.py"),
    Mutant("sampling", "return random_subset(rows, size=self._max_per_unit)", "return rows", "a unit may have any number of rows", "test_units.py"),
    Mutant("_mechanism/sums", "        self._is_written = False", "        self._is_written = True", "what memory held before is released", "test_sums.py"),
    Mutant("_mechanism/sums", "beta=int(self._is_written)", "beta=0", "micro-batches but the last are lost", OPTIMIZER),
    Mutant("_mechanism/sums", "torch.promote_types(parameter.dtype, torch.float32)", "parameter.dtype", "sums and noise in the parameters' own precision", OPTIMIZER),
    # Sampling
    Mutant("sampling/_draws", "int(sampling_probability * 2.0**64)", "int(sampling_probability * 2.0**63)", "half the sampling probability", SAMPLING),
    Mutant("sampling", "units = [share[i] for i in self._sample(len(share))]", "units = [share[i] for i in self._sample(len(share))][:1]", "all but one of a draw are dropped", SAMPLING),
    Mutant("sampling", "self.made.append(draw)", "self.made.extend([draw] if draw.rows else [])", "empty batches are dropped", SAMPLING),
    Mutant("sampling", "serial=next(_serials)", "serial=0", "tickets are all alike", SAMPLING + " test_optimizer.py"),
    Mutant("sampling", "        self.ticket = self.part = None", "        self.part = None", "a new pass leaves the old ticket valid", SAMPLING),
    Mutant("sampling", "if number[0] != os.getpid():", "if False:", "two processes use one draw", SAMPLING),
    Mutant("sampling", "        reject_arguments(refused)", "        pass", "shuffle=True is swallowed", SAMPLING),
    Mutant("sampling", "if not self.in_order:", "if False:", "a ticket may belong to another batch", SAMPLING),
    Mutant("_mechanism/batch", "_last_spent[loader] = self.ticket.serial", "pass", "tickets are not consumed", OPTIMIZER),
    Mutant("_mechanism/batch", "elif self.num_samples + num_samples > self.num_drawn:", "elif False:", "an example may count twice", OPTIMIZER),
    Mutant("_mechanism/batch", "if self.num_samples < self.num_drawn and not self.may_lack_units:", "if False:", "a step on part of its batch", OPTIMIZER),
    Mutant("_mechanism/mechanism", "if batch is not None and batch.ticket is ticket:", "if batch is not None:", "a batch that was broken off leaks into the next", OPTIMIZER),
    Mutant("_mechanism/batch", "if self.num_backwards >= limit:", "if False:", "unamplified batches may overlap", OPTIMIZER),
    Mutant("optimizer", "        check_loader(self.plan, loader)", "        pass", "any loader may be attached", OPTIMIZER),
    Mutant("_mechanism/mechanism", "1 / self.plan.expected_batch_size)", "1 / max(1, self.loader.ticket.num_samples))", "division by the number that was drawn", OPTIMIZER + " test_audit_replay.py"),
    Mutant("sampling/_draws", "(num_trials - above) * wins", "(num_trials - above) * loses", "another law for the number of winners", "test_sampling_draws.py"),
    Mutant("sampling/_draws", "2**64 - 2**64 % below - 1", "2**64 - 1", "small indices are likelier", "test_sampling_draws.py"),
    Mutant("sampling/_draws", "np.argsort(_distinct_words(len(indices)))[:size]", "np.arange(size)", "of a large batch the first examples are kept", "test_truncated.py"),
    Mutant("accounting/_sampled_losses", "min(1.0, taken / full), sigma / 2", "min(1.0, taken / full), sigma", "a displaced example is forgotten", "test_truncated.py"),
    Mutant("_checks", 'if truncated and neighboring_relation == "add_or_remove_one":', "if False:", "truncated batches are accounted where their number is private", "test_truncated.py"),
    # Ledger
    Mutant("_mechanism/mechanism", "        self.ledger.reserve(", "        (lambda **k: self._add_noise([], stddev) or self.ledger.reserve(**k))(", "noise is drawn before the ledger is charged", OPTIMIZER),
    Mutant("ledger", "return claimed if self._failure is None else void(claimed)", "return claimed", "a run whose examples were mixed keeps its guarantee", "test_claims.py"),
    Mutant("ledger", "                else self._budget.allows(self.releases(), charge.to_release())", "                else True", "the budget is not enforced where a release was not planned", LEDGER),
    Mutant("ledger", "return num_steps <= self._steps_within_target", "return True", "the budget is not enforced", LEDGER),
    Mutant("ledger", "if self._totals.segments is not self._segments:", "if False:", "what a checkpoint brings is not added up", LEDGER),
    Mutant("ledger", "if num_steps > self._plan.steps:", "if num_steps > self._plan.steps + 1:", "one step beyond the plan", LEDGER),
    Mutant("ledger", "epsilon <= limit", "epsilon <= limit * 1.05", "five percent beyond the target", LEDGER),
    Mutant("ledger", "        return long", "        return theirs", "an older checkpoint takes charges back", LEDGER),
    Mutant("ledger", "self._key = secrets.token_hex(16) if key is None else key", "self._key = key or 'mine'", "all processes charge under one id", LEDGER),
    Mutant("ledger", "fork._segments = self._segments", "fork._segments = {}", "a copy starts from nothing spent", LEDGER),
    Mutant("ledger", "if self._process != os.getpid():", "if False:", "a forked process charges under its parent's id", LEDGER),
    Mutant("optimizer", "        if not ledgers:", "        if False:", "a state without a ledger is loaded", "test_optimizer.py test_optimizer_checkpoint.py"),
    Mutant("optimizer", "for ledger in ledgers:", "for ledger in ledgers[1:]:", "the budget is lost on resume", "test_optimizer.py test_optimizer_checkpoint.py"),
    # Accounting
    Mutant("accounting/_release", "counts[kind] = counts.get(kind, 0) + r.count", "counts[kind] = r.count", "equal releases count once", ACCOUNTING),
    Mutant("accounting/_accountant", "any(release.noise_multiplier == 0 for", "any(release.noise_multiplier < 0 for", "no noise is not infinite", ACCOUNTING),
    Mutant("accounting/_dp_events", '"replace_one": Neighbors.REPLACE_ONE', '"replace_one": Neighbors.ADD_OR_REMOVE_ONE', "replacing one costs as much as adding one", ACCOUNTING),
    Mutant("accounting/_dp_events", "SelfComposedDpEvent(event, release.count)", "SelfComposedDpEvent(event, max(1, release.count - 1))", "RDP forgets a step", ACCOUNTING),
    Mutant("calibration", "if -WASTE <= excess <= 0 or (", "if -WASTE <= excess <= 0.1 or (", "calibration may overshoot", "test_calibration.py"),
    Mutant("accounting/_agreement", "if ours != theirs and not", "if False and not", "losses that dp_accounting contradicts are certified", "test_certificate.py"),
    Mutant("accounting/_composition", "return _UNIT * sum(", "return 0 * sum(", "rounding may lower epsilon", "test_accounting_exact.py"),
    Mutant("accounting/_composition", "/ distance,", "/ apart,", "a displaced example is forgotten beyond large epsilons", "test_accounting_exact.py"),
    Mutant("accounting/_group_losses", "term_L = weight * np.exp(exponent_L)", "term_L = np.exp(exponent_L) / len(shifts)", "a group is in a batch more or less often", "test_accounting_exact.py"),
    Mutant("certificate/_verification", "sentence not in stated", "sentence in ()", "emptied assumptions verify", "test_certificate.py"),
    Mutant("certificate/_json", "names.count(name) > 1", "False", "a document may state a thing twice", "test_certificate.py"),
    Mutant("_keystream", "        self._counts[purpose] += 1", "        self._counts[purpose] = 1", "replayed keys repeat", "test_audit_replay.py"),
    Mutant("plan", "        return 1.0", "        return 0.01", "amplification without sampling", "test_plan.py test_optimizer.py"),
    Mutant("accounting/_agreement", "TOLERANCE: Final = 1e-6", "TOLERANCE: Final = 0.5", "a false certificate verifies", "test_cli.py"),
    # The wrapper
    Mutant("optimizer/_guard", "register_optimizer_step_pre_hook(_refuse_unprivate_step)", "pass", "the wrapped optimizer steps by itself", "test_guard.py"),
    Mutant("optimizer/_registry", "if _groups_signature(owner) != self._seen[owner].outline:", "if False:", "parameters that a framework exchanges may be stepped by others", "test_guard.py"),
    Mutant("_mechanism/current_values", "self.assigned.update(assigned)", "pass", "a resumed run forgets that its noise was raised", "test_optimizer_checkpoint.py"),
    Mutant("_mechanism/mechanism", "_check_attached(gradients, leaves)", "pass", "copies that a framework trains get steps of noise alone", "integrations/test_deepspeed.py"),
    Mutant("optimizer", "check_no_grad_sample(self.param_groups, _BESIDE_LOSSES, nor_soon=True)", "pass", "gradients of two sources count for one batch", "test_grad_samples.py"),
    Mutant("optimizer/_transparent", " = forwarded(original_optimizer.param_groups)", "", "param_groups is not forwarded", "test_transparent.py test_optimizer.py"),
    Mutant("optimizer/_transparent", "setattr(self.original_optimizer, name, value)", "super().__setattr__(name, value)", "writes stay on the wrapper", "test_transparent.py test_transparent_surface.py"),
    Mutant("optimizer", "parameter.grad = None  # A frozen", "pass  # A frozen", "a frozen parameter keeps its raw gradient", OPTIMIZER),
    Mutant("optimizer", "[p for p in self._all_parameters() if p.requires_grad]", "[p for p in self._all_parameters() if p.requires_grad][:1]", "all parameters but the first are left out", OPTIMIZER),
    Mutant("optimizer/_private_loss", "        ctx.private_backward(gradient.item())", "        pass", "backward() of the private loss does nothing", OPTIMIZER),
    Mutant("optimizer", 'if "grad_scale" in vars(self) and', "if False and", "a gradient scaler scales clipped gradients", "test_optimizer_scaler.py"),
    # Many ranks
    Mutant("distributed", "torch.sum(self._rows_WR, dim=0", "torch.mean(self._rows_WR, dim=0", "the total is divided by the number of ranks", "distributed/test_training.py distributed/test_release.py"),
    Mutant("sampling", "share = (0, 1) if self._sharded else rank_and_size()", "share = (0, 1)", "every rank draws every example", "distributed/test_training.py distributed/test_loader.py"),
    # Noise on a device
    Mutant("noise", "self._num_blocks += num_blocks", "pass", "a device's words are drawn twice", DEVICE),
    Mutant("noise", 'self._key = new_key("noise")', "self._key = bytes(KEY_BITS // 8)", "one key for ever on a device", DEVICE),
    Mutant("noise", "more_C = torch.where(upper_C, ~more_C, more_C)", "more_C = more_C", "the bits of one tail run the wrong way on a device", DEVICE),
    Mutant("noise", "fraction_C = units_C - whole_C", "fraction_C = units_C * 0", "the fraction of a sum is lost on a device", DEVICE),
    Mutant("noise", "distance_N.add_(steps_N.abs(), alpha=FLOAT32_ERROR_OF_SUM)", "pass", "large sums are rounded to float32 with their noise on a device", DEVICE),
    Mutant("noise", "part_N in x_N.split(self._first_stage.longest(x_N.dtype))", "part_N in x_N.split(self._first_stage.longest(x_N.dtype))[:1]", "the rest of a long vector on a device gets no noise", DEVICE),
    Mutant("noise", "if block.tobytes() != openssl", "if False and openssl", "a kernel of wrong words is used", DEVICE),
    Mutant("noise", "return steps_C + 0.0  # -0 + 0 is 0.", "return steps_C", "zeros show the sign of an inexact sum", NOISE),
    # What the suite once left unnoticed
    Mutant("optimizer/_dp_optimizer", "and not any(bool(p.grad.any()) for p in parameters if p.grad is not None)", "", "at rate 0 a raw gradient goes into new state, and costs nothing", "test_optimizer_checkpoint.py"),
    Mutant("optimizer/_dp_optimizer", "        super().__setstate__(state)", "        return super().__setstate__(state)", "the wrapped optimizer of a copy steps by itself", "test_guard.py"),
    Mutant("_mechanism/mechanism", "self.step.drop()  # A failure half-way must not leave half a sum.", "pass", "an error in a second micro-batch leaves half a sum", "test_optimizer_many.py"),
    Mutant("ledger/_ledger", "                or last.count > end.count", "", "a segment that made fewer of the same charges takes charges back", "test_ledger.py"),
    Mutant("ledger/_ledger", "as_planned = totals.as_planned and self._is_planned(charge, totals.steps)", "as_planned = self._is_planned(charge, totals.steps)", "a run that spent more than planned goes on past its target", "test_ledger.py"),
    Mutant("ledger/_ledger", "            and release.truncation == plan.truncation", "", "a truncated release counts as the planned one", "test_ledger.py"),
    Mutant("ledger/_ledger", "fork._num_advisories = self._num_advisories", "pass", "a copy of a ledger forgets what older release charged it", "test_claims.py"),
    Mutant("_advisories", "return ADVISORIES[num_known:]", "return ()", "known faults are not told", "test_claims.py"),
    Mutant("_mechanism/mechanism", "        if any(seed is not None for seed in seeds):", "        if False:", "a debugging seed is certified as private", "test_debugging_seed.py"),
    Mutant("certificate/_run", 'return self.failure is not None or self.rng == "debug"', "return self.failure is not None", "noise of a debugging seed is certified where the ledger does not say so", "test_debugging_seed.py"),
    Mutant("optimizer/_joint_optimizer", "if owner.setdefault(id(parameter), number) != number:", "if False:", "two optimizers may update one parameter", "test_joint_optimizer.py"),
    Mutant("optimizer/_joint_optimizer", "            offset += _num_parameters(optimizer)", "", "states of joined optimizers overwrite each other", "test_joint_optimizer.py"),
    Mutant("ledger/_claim", "noise_multiplier < planned:", "noise_multiplier < 0:", "noise chosen from releases may be less than planned", "test_claims.py"),
    Mutant("ledger/_claim", "if charge.sampling_probability > planned_q or charge.truncation != plan.truncation:", "if False:", "a larger sample than planned is charged as planned", "test_claims.py"),
    Mutant("ledger/_claim", "whole = merge_equal_releases([*releases, *remaining(plan, charges)])", "whole = merge_equal_releases(releases)", "a run that ended early claims the steps taken", "test_claims.py"),
    Mutant("ledger/_claim", "return kept if spent.epsilon <= kept.epsilon else spent", "return spent", "a filtered run claims what it spent", "test_claims.py"),
    Mutant("ledger/_charge", "self.noise_multiplier if sigma is None else sigma", "self.noise_multiplier", "noise raised because of a release lowers epsilon", "test_claims.py"),
    Mutant("ledger/_budget", "    if plan.renyi_order is not None and releases:", "    if False:", "a filter composes by privacy loss distributions", "test_claims.py"),
    Mutant("accounting/_renyi", "math.log1p(-1 / order) - math.log(delta * order) / (order - 1)", "math.log1p(-1 / order) - math.log(order) / (order - 1)", "epsilon at an order forgets delta", "test_claims.py"),
    Mutant("certificate/_numbers", "return max(cost, kept)", "return cost", "a filtered run is certified at what it spent", "test_claims.py"),
    Mutant("certificate/_document", "rest = () if goes_on else run.remaining", "rest = ()", "a composition forgets what forks could have done", "test_claims.py"),
    Mutant("certificate/_verification", "holds = run.remaining == first_releases(stated, rest)", "holds = True", "the rest of a plan may be cut off", "test_claims.py"),
    Mutant("_mechanism/current_values", "self.ledger.check_noise(value)", "pass", "less noise than planned is refused late", "test_claims.py"),
    Mutant("ledger/_charge", "        and left.truncation == right.truncation", "", "a truncated release is charged as the one before it", "test_ledger.py test_truncated.py"),
    Mutant("distributed/_fsdp", " or mesh.size() != num_ranks:", ":", "a model that is sharded over some ranks only is trained apart", "distributed/test_failures.py"),
    Mutant("clipping", "normal_GB = factors_GB >= torch.finfo(norms_GB.dtype).tiny", "normal_GB = factors_GB > 0", "subnormal factors are rounded up beyond C", "test_clipping.py"),
    Mutant("noise/_gaussian", "(1 + math.exp(epsilon)) * distance", "2 * distance", "the error in delta does not grow with epsilon", "test_noise.py"),
    Mutant("noise/_host/lattice", "_REACH_PER_WIDTH: Final = 2.0**-6", "_REACH_PER_WIDTH: Final = 2.0**-9", "bits that were not drawn are taken for decided", "test_noise_rounding.py"),
    Mutant("noise/_host", "steps_N -= constants.integers", "np.rint(sum_N, out=steps_N)", "zeros of float32 show the sign of an inexact sum", "test_noise_rounding.py"),
    Mutant("noise/_host", "self._keystream.fill(points_N)", "pass", "8 of 24 bits are left from the block before", "test_noise_device.py"),
    Mutant("noise/_host", "if by_numpy.tobytes() != by_kernel.tobytes():", "if False:", "a compiled loop that errs is used", KERNEL),
    Mutant("noise/_host", "stage.write(left, self._decided(left), x)", "self._decided(left)", "sums that the compiled loop left get no noise", KERNEL),
    Mutant("noise/_host", "all(map(Tensor.is_contiguous, parts))", "True", "noise is written between the elements of a view", KERNEL),
    Mutant("noise/_host", "spare.append(workspace)", "spare.extend([workspace] * 2)", "two threads draw into the same memory", "test_noise.py"),
    Mutant("sampling/_loader", "            self._served = None", "            pass", "the batch sampler of a loader with workers gives batches without tickets", "test_sampling.py"),
    # What torch's own backward pass shows of gradients
    Mutant("per_sample/_rules/matrix", 'context.rows(context.saved("mat1")), context.rows(product)', 'context.rows(context.saved("mat1").roll(1, 0)), context.rows(product)', "a rule reads another unit's activations", REFERENCE),
    Mutant("per_sample/_parts/factored", "return left_B * right_B", "return left_B * right_B / 2", "norms of products are too small", REFERENCE),
    Mutant("per_sample/_backward_pass", "self.parts.setdefault(id(parameter), []).append(whole)", "self.parts.setdefault(id(parameter), [whole])", "the sum lacks all uses of a parameter but one", REFERENCE),
    Mutant("per_sample/_gradients", "total_F = factors_B.to(grads_BF.device, grads_BF.dtype) @ grads_BF", "total_F = factors_B.roll(1).to(grads_BF.device, grads_BF.dtype) @ grads_BF", "a gradient is weighed by another unit's factor", REFERENCE),
    Mutant("per_sample/_isolation/verification", "if sums.wrong:", "if False:", "sums are not compared with torch's own", REFERENCE),
    Mutant("per_sample/_isolation/verification", "if norms.wrong:", "if False:", "norms are not compared with torch's own", REFERENCE),
    Mutant("per_sample/_isolation/verification", "elif not reference.is_kept_out(gradients):", "elif False:", "NaN reaches a sum in which it has no part", REFERENCE),
    Mutant("per_sample/_isolation/rounding", "_OF_SUMS: Final = 256.0", "_OF_SUMS: Final = 1e6", "the sum of many gradients hides a wrong one", REFERENCE),
    Mutant("per_sample/_isolation/rounding", "_OF_NORMS: Final = 256.0", "_OF_NORMS: Final = 1e6", "a norm may be too small", REFERENCE),
    Mutant("per_sample/_isolation/reference", "return torch.where(is_finite_U, sign_U * power_U.exp2(), 0.0)", "return is_finite_U.double()", "all units have one weight", REFERENCE),
    Mutant("per_sample/_isolation/reference", "self._unit: int | None = secrets.choice(", "self._unit: int | None = min(", "the norm of the first unit alone is compared", REFERENCE),
    Mutant("per_sample/_known_graphs", "if _outline(walked) != _outline(known.graph):", "if False:", "a graph that is taken for a known one is not looked at again", REFERENCE),
    Mutant("_mechanism/mechanism", "except (SampleMixingError, WrongGradientError) as error:", "except SampleMixingError as error:", "a wrong gradient that is found after a release ends nothing", "test_mixing_ends_a_run.py"),
    Mutant("_mechanism/mechanism", "groups=self.effective_clipping.group_of(batch.parameters),", "groups=None,", "other norms are verified than are clipped by", "test_mixing_ends_a_run.py"),
    # Failures, and units
    Mutant("_mechanism/mechanism", "if self.ledger.steps:", "if False:", "mixing that is found after a release ends nothing", "test_mixing_ends_a_run.py"),
    Mutant("ledger", "fork._failure = self._failure", "pass", "a copy of a failed ledger is sound", "test_ledger.py"),
    Mutant("ledger", "return void(composed)", "return composed", "a failed run states an epsilon", "test_ledger.py"),
    Mutant("certificate", "if any(run.has_failed for run in runs):", "if False:", "a failed run is certified", "test_mixing_ends_a_run.py"),
    Mutant("_mechanism/batch", "if not self.units.isdisjoint(units):", "if False:", "a unit in two calls is clipped twice", "test_units.py"),
    Mutant("_mechanism/loss_units", "if len(rows) != len(losses):", "if False:", "losses of a part are taken for others' rows", "test_units.py"),
    Mutant("_mechanism/loss_units", "any(not 0 <= u < ticket.num_samples for u in present)", "False", "units that were not drawn count", "test_units.py"),
    Mutant("_mechanism/batch", "if ticket.process != os.getpid():", "if False:", "a fork releases its parent's batch", "test_optimizer_many.py"),
    Mutant("sampling/_units", "if has_units and unit_of_privacy == ONE_EXAMPLE:", "if False:", "users are certified as examples", "test_units.py"),
    Mutant("sampling/_units", "if not has_units and column is not None:", "if False:", "rows that were drawn one by one are certified as users", "test_units.py"),
    Mutant("_mechanism/loss_units", "if whose.num_units and whose.of_loss is None and column is not None:", "if False:", "losses of a user are clipped one by one", "test_units.py"),
    Mutant("per_sample/_isolation/data_rows", "or _has_same_values(copy, one)", "", "a batch that was moved to another device is not recognised", "per_sample/test_units_apart.py"),
    Mutant("per_sample/_graph/public", "and torch.can_cast(public.dtype, tensor.dtype)", "", "numbers that round to public ones count as public", "per_sample/test_units_apart.py"),
    Mutant("per_sample/_isolation/checks", "        if is_sparse:", "        if False:", "a sparse weight is no error that names it", "per_sample/test_units_apart.py"),
    # Groups
    Mutant("ledger/_budget", "group_size=plan.group_size,", "group_size=1,", "a run goes on after the group has spent the target", "test_groups.py"),
    Mutant("plan", "group_size=self.group_size,", "group_size=1,", "a plan states an example's epsilon for a group", "test_groups.py"),
    Mutant("calibration", "group_size=self.group_size,", "group_size=1,", "noise is calibrated for one example of a group", "test_groups.py"),
    Mutant("certificate", '{**about, "group_size": group_size}', "about", "an example's epsilon is certified for a group", "test_groups.py"),
    Mutant("certificate/_verification", "group_size=c.group_size,", "group_size=1,", "an example's epsilon passes for a group's", "test_groups.py"),
    # Declarations
    Mutant("ledger", "fork._declared_public = self._declared_public", "pass", "a copied run forgets what was declared public", "test_ledger.py"),
    Mutant("ledger", "            self.declare_public(declared)", "            pass", "a resumed run forgets what was declared public", "test_ledger.py"),
    Mutant("optimizer/_dp_optimizer", "        ledger.declare_public(declared)", "        pass", "a certificate does not say what was declared public", "test_declared_public.py"),
    Mutant("certificate", "if any(run.declared_public for run in runs):", "if False:", "that declared tensors hold no data is not assumed", "test_certificate.py"),
    Mutant("certificate", "for unit in units if unit != ONE_EXAMPLE", "for unit in ()", "that a unit is a person is not assumed", "test_certificate.py"),
)  # fmt: skip
