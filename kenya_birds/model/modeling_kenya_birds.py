"""The bird classifier: a timm image model on one-channel spectrograms."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .audio_model_kenya_birds import AudioModel
from .backbone_kenya_birds import build_backbone, has_gradient_checkpointing
from .configuration_kenya_birds import KenyaBirdsConfig
from .graph_kenya_birds import HUB_OPTIONS, GraphRunner, find_graph

# An unknown multi-label target: neither present nor absent.
MASKED = -100
MULTI_LABEL = "multi_label_classification"
AUTO_CLASS = "AutoModelForAudioClassification"
# Probabilities of a published network are clipped to [EPSILON, 1 - EPSILON], so that their log-odds are finite.
EPSILON = 1e-12
# The same for log-odds that are inputs of a head, which then lie within 8: networks of 8 bits give probabilities of 0.
HEAD_EPSILON = 3.4e-4


class KenyaBirdsForAudioClassification(PreTrainedModel):
    """A timm backbone with average pooling and a linear classifier over species.

    Features are padded with zeros to the next multiple of 32 bands and frames, unless the backbone is a variant (see
    `build_backbone`). If the configuration has a calibration,
    logits are calibrated in evaluation mode, but not in training mode.

    If `config.no_call_class` is set, the classes and "no call" share a softmax. The logit of no call is always 0: this
    loses nothing, because a softmax depends on differences of logits only. In training mode, `forward` returns the
    other logits of this softmax. In evaluation mode, it returns log-odds (see `softmax_log_odds`), whose sigmoid is
    the softmax. So scores are read as those of any multi-label model, and no call is never one of them.

    If `config.graph` is set, a published network takes the place of the backbone, and the input is the waveform.
    `from_pretrained` opens its file. It runs on the CPU, and cannot be trained. Without `config.head` it also takes
    the place of the classifier: the logits of a class are the log-odds of the network's probability.

    If `config.audio_model` is set, a model of transformers takes the place of the backbone, and the input is the
    waveform.

    If `config.head` is set, the classifier is an `EmbeddingHead`.

    Args:
        config: The configuration; `config.backbone` is the name of a timm model. It is built with random weights.

    Raises:
        ValueError: If timm does not have the backbone, if it accepts images of one size only, if the calibration
            has another number of classes, or if a single-label model has a class for no call.
    """

    config_class = KenyaBirdsConfig
    base_model_prefix = "backbone"
    main_input_name = "input_features"
    # The loss of `forward` is a mean over the batch; the trainer computes its own.
    accepts_loss_kwargs = False

    def __init__(self, config: KenyaBirdsConfig) -> None:
        super().__init__(config)
        for name in ("logit_scale", "logit_offset"):
            numbers = getattr(config, name)
            if isinstance(numbers, list) and len(numbers) != config.num_labels:
                raise ValueError(
                    f"{name} has {len(numbers)} numbers, but there are {config.num_labels} classes: give one per "
                    "class, or None for new classes"
                )
        if config.no_call_class and config.problem_type != MULTI_LABEL:
            raise ValueError(
                f"no_call_class is set and problem_type is {config.problem_type!r}: expected {MULTI_LABEL!r}, or also "
                "no_call_class=False"
            )
        self._network: GraphRunner | None = None
        self.backbone: Any = None
        self.classifier: Any = None
        if config.graph is not None:
            self.embedding_size: int = config.graph["embedding_size"] or 0
        elif config.audio_model is not None:
            self.backbone = AudioModel.of_settings(config.audio_model["config"], config.audio_model["extractor"])
            self.embedding_size = config.audio_model["embedding_size"]
        else:
            self.backbone = backbone = build_backbone(config)
            self.embedding_size = getattr(backbone, "head_hidden_size", backbone.num_features)
            self.supports_gradient_checkpointing = has_gradient_checkpointing(backbone)
        if config.head is not None:
            self.classifier = EmbeddingHead(self.embedding_size, config.num_labels, config.drop_rate, **config.head)
        elif config.graph is None:
            self.dropout = nn.Dropout(config.drop_rate)
            self.classifier = nn.Linear(self.embedding_size, config.num_labels)
        if self.needs_scores:
            # The network's output of each class; -1: it has none.
            self.register_buffer("output_of_class", torch.full((config.num_labels,), -1))
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a model, and opens the file of its published network if it has one.

        Args:
            pretrained_model_name_or_path: The model's folder, or its name on the Hub.
            *args: As in transformers.
            **kwargs: As in transformers.

        Raises:
            OSError: If the network's file does not exist.
            ImportError: If its runtime is not installed.
            ValueError: If it is another file than the config says, or other classes are given and no head is trained.
        """
        built = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = built[0] if isinstance(built, tuple) else built
        if model.config.graph is not None:
            options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
            path = find_graph(model.config.graph, pretrained_model_name_or_path, **options)
            model.open_network(path)
            if model.classifier is None and (model.output_of_class < 0).any():
                raise ValueError(
                    "the model is a published network, whose classes cannot be replaced: load it with its own labels, "
                    "or train a head on it"
                )
        return built

    def open_network(self, path: Path) -> None:
        """Opens the file of the published network.

        Args:
            path: The file.

        Raises:
            ImportError: If its runtime is not installed.
            ValueError: If it is another file than the config says.
        """
        self._network = GraphRunner(self.config.graph, path)

    @property
    def needs_scores(self) -> bool:
        """Whether the model uses the scores of a published network."""
        return self.config.graph is not None and (self.config.head is None or self.config.head["network_scores"])

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return super().device if self.classifier is not None else self.output_of_class.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the input: that of the weights; float32 for a published network."""
        return super().dtype if self.config.graph is None else torch.float32

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the model and its code, for `AutoModel` and `AutoModelForAudioClassification`.

        The file of a published network is saved too, if it was in the model's folder or repository.

        Args:
            save_directory: The folder.
            *args: As in transformers.
            **kwargs: As in transformers.
        """
        name = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        auto_map = getattr(self.config, "auto_map", None) or {}
        self.config.auto_map = {**auto_map, **dict.fromkeys(("AutoModel", AUTO_CLASS), name)}
        if self._network is not None and Path(self.config.graph["file"]).name == self.config.graph["file"]:
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            self._network.save(folder)
        super().save_pretrained(save_directory, *args, **kwargs)

    def embed(self, input_features: torch.Tensor) -> torch.Tensor:
        """Embeddings of clips: the output of the backbone, or the embedding of a published network.

        Args:
            input_features: Shape `(batch, bands, frames)`, as the feature extractor returns them.

        Returns:
            Shape `(batch, embedding_size)`.

        Raises:
            ValueError: If the network's embedding is not known.
        """
        if self.config.graph is not None:
            if not self.embedding_size:
                raise ValueError("the published network of this model has no known embedding")
            return self._run_network(input_features, "embedding")[0]
        if self.config.audio_model is not None:
            return self.backbone(input_features)
        if self.config.backbone_variant != "timm":
            return self.backbone(input_features.unsqueeze(1))
        bands, frames = input_features.shape[1:]
        # A backbone halves the size five times. Most drop the remainder (28 of 188 frames), some fail on it.
        padded = nn.functional.pad(input_features, (0, -frames % 32, 0, -bands % 32))
        return self.backbone(padded.unsqueeze(1))  # (B, bands, frames) -> (B, 1, bands, frames) -> (B, D)

    def head_input(self, input_features: torch.Tensor) -> torch.Tensor:
        """Input of the classifier: embeddings, and the network's log-odds of each class if the head uses them.

        Args:
            input_features: See `forward`.

        Returns:
            Shape `(batch, embedding_size)`, or `(batch, embedding_size + num_labels)` where the log-odds of classes
            that the network does not know are 0. Without a classifier, the log-odds `(batch, num_labels)`.
        """
        if not self.needs_scores:
            return self.embed(input_features)
        if self.classifier is None:
            return self._known_log_odds(self._run_network(input_features, "scores")[0], EPSILON)
        embeddings, scores = self._run_network(input_features, "embedding", "scores")
        known = self.output_of_class >= 0
        return torch.cat([embeddings, self._known_log_odds(scores, HEAD_EPSILON) * known], dim=1)

    def _known_log_odds(self, scores: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Log-odds of each class, from the scores `(batch, outputs)` of the network."""
        return log_odds(scores, self.config.graph["activation"], epsilon)[:, self.output_of_class.clamp(min=0)]

    def _classify(self, head_input: torch.Tensor) -> torch.Tensor:
        """Logits of `head_input`, before calibration."""
        if self.classifier is None:
            return head_input
        kind = head_input.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            # Scores with 8 bits of mantissa would be coarse: windows with different sound would have equal ones.
            with torch.autocast(kind, enabled=False):
                return self._classify(head_input.to(self.classifier.bias.dtype))
        return self.classifier(head_input if self.config.head is not None else self.dropout(head_input))

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        head_input: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput | tuple[torch.Tensor, ...]:
        """Scores clips.

        Args:
            input_features: Shape `(batch, bands, frames)`; `(batch, samples)` if the backbone takes the waveform.
            labels: Class ids of shape `(batch,)`, or zeros and ones of shape `(batch, num_labels)` if the problem is
                multi-label. With labels, the output has an unweighted loss (with a class for no call, `softmax_loss`
                before calibration).
            return_dict: Whether to return an output object instead of a tuple; by default as in the config.
            head_input: Result of `head_input`, instead of features.

        Returns:
            `logits` of shape `(batch, num_labels)`, and `loss` if labels are given.

        Raises:
            ValueError: If there are neither features nor `head_input`, or labels have another shape.
        """
        if head_input is None:
            if input_features is None:
                raise ValueError("expected input_features, or head_input")
            head_input = self.head_input(input_features)
        logits = self._classify(head_input)
        loss = None
        if labels is not None:
            self._check_labels(labels, logits)
        if labels is not None and self.config.no_call_class:
            loss = softmax_loss(log_softmax_with_no_call(logits), labels).mean()
        if not self.training:
            logits = self._calibrate(softmax_log_odds(logits) if self.config.no_call_class else logits)
        if labels is not None and loss is None:
            loss = classification_loss(logits, labels, self.config.problem_type).mean()
        if return_dict if return_dict is not None else self.config.return_dict:
            return SequenceClassifierOutput(loss=loss, logits=logits)
        return (logits,) if loss is None else (loss, logits)

    def _check_labels(self, labels: torch.Tensor, logits: torch.Tensor) -> None:
        multi_label = self.config.problem_type == MULTI_LABEL
        expected = logits.shape if multi_label else logits.shape[:1]
        if labels.shape != expected:
            kind = "zeros and ones of each class" if multi_label else "class ids"
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, expected {tuple(expected)}, {kind}, because "
                f"problem_type is {self.config.problem_type!r}"
            )

    def _run_network(self, waveform: torch.Tensor, *parts: str) -> list[torch.Tensor]:
        """Runs the published network on the CPU; the results are on the device of the waveform."""
        if self._network is None:
            raise ValueError("the published network is not open: load the model with from_pretrained")
        sound = waveform.detach().float().cpu().numpy()
        results = self._network(sound, parts, torch.get_num_threads())
        return [torch.from_numpy(values).to(waveform.device) for values in results]

    def _calibrate(self, logits: torch.Tensor) -> torch.Tensor:
        scale, offset = self.config.logit_scale, self.config.logit_offset
        if scale is not None:
            logits = logits * torch.tensor(scale, dtype=logits.dtype, device=logits.device)
        if offset is not None:
            logits = logits + torch.tensor(offset, dtype=logits.dtype, device=logits.device)
        return logits

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # timm initialises its own modules. The classifier and modules that are in no checkpoint remain.
        if module is self.classifier and isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif module is getattr(self.classifier, "output", None):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, EmbeddingHead) and module.score_weight is not None:
            nn.init.ones_(module.score_weight)
        elif module is self and self.needs_scores:
            nn.init.constant_(self.output_of_class, -1)
        elif hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()  # type: ignore[operator]

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.backbone.set_grad_checkpointing(enable)
        self.gradient_checkpointing = enable


class EmbeddingHead(nn.Module):
    """A classifier on embeddings of a frozen backbone: linear, or with one hidden layer.

    Embeddings are standardised with the mean and the standard deviation of the training windows. With network scores,
    the logit of a class is `score_weight * network_logit`, plus what the head computes from the embedding. The output
    layer starts at zero, so that a class starts with what the network knows of it.

    Args:
        size: Length of an embedding.
        classes: Number of classes.
        drop_rate: Dropout before the output layer.
        hidden_size: Size of the hidden layer; None: there is none.
        network_scores: Whether the log-odds of each class follow the embedding in the input.
    """

    def __init__(
        self, size: int, classes: int, drop_rate: float, hidden_size: int | None, network_scores: bool
    ) -> None:
        super().__init__()
        self.size = size
        self.hidden: nn.Linear | None
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.hidden = None if hidden_size is None else nn.Linear(size, hidden_size)
        self.dropout = nn.Dropout(drop_rate)
        self.output = nn.Linear(hidden_size or size, classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.score_weight = nn.Parameter(torch.ones(classes)) if network_scores else None

    @property
    def bias(self) -> torch.Tensor:
        """Bias of each class, shape `(classes,)`."""
        return self.output.bias

    @torch.no_grad()
    def standardize(self, head_input: torch.Tensor) -> None:
        """Takes mean and standard deviation from the inputs of the training windows, shape `(windows, ...)`."""
        deviation, mean = torch.std_mean(head_input[:, : self.size], dim=0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6 * mean.abs().clamp(min=1e-6), deviation, 1))

    def forward(self, head_input: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, classes)` of inputs `(batch, size)`, or `(batch, size + classes)` with network scores."""
        head_input = head_input.to(self.mean.dtype)  # networks give float32
        values = (head_input[:, : self.size] - self.mean) / self.scale
        if self.hidden is not None:
            values = nn.functional.gelu(self.hidden(values))
        logits = self.output(self.dropout(values))
        return logits if self.score_weight is None else logits + self.score_weight * head_input[:, self.size :]


def log_odds(scores: torch.Tensor, activation: str, epsilon: float) -> torch.Tensor:
    """Log-odds `log(p / (1 - p))` of the probabilities of a published network.

    Args:
        scores: Shape `(batch, outputs)`.
        activation: What turns them into probabilities: `"sigmoid"` or `"softmax"`; `"none"` if they are such.
        epsilon: Probabilities are clipped to `[epsilon, 1 - epsilon]`, except those of a sigmoid.

    Returns:
        float32, same shape.

    Raises:
        ValueError: If the activation has another name.
    """
    if activation == "sigmoid":
        return scores.float()
    if activation not in ("softmax", "none"):
        raise ValueError(f"activation is {activation!r}, expected 'sigmoid', 'softmax' or 'none'")
    # Apple's GPUs (MPS) have no float64.
    wide = (scores.cpu() if scores.device.type == "mps" else scores).double()
    probability = wide.softmax(dim=1) if activation == "softmax" else wide
    return torch.logit(probability, eps=epsilon).float().to(scores.device)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Loss of each clip, not reduced: cross-entropy, or binary cross-entropy of each class if multi-label.

    Args:
        logits: Shape `(batch, num_labels)`.
        labels: Class ids `(batch,)`, or zeros and ones `(batch, num_labels)`, -100 if unknown.
        problem_type: `"multi_label_classification"`, `"single_label_classification"` or None, which is single-label.
        label_smoothing: Share of each single-label target that is spread evenly over all classes.

    Returns:
        Shape `(batch,)`, or `(batch, num_labels)` if multi-label; float32, 0 for unknown labels.

    Raises:
        ValueError: If `problem_type` has another value.
    """
    logits = logits.float()
    if problem_type == MULTI_LABEL:
        known = labels != MASKED
        losses = nn.functional.binary_cross_entropy_with_logits(logits, (labels * known).float(), reduction="none")
        return losses * known
    if problem_type in (None, "single_label_classification"):
        return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    raise ValueError(
        f"problem_type is {problem_type!r}, expected 'single_label_classification' or 'multi_label_classification'"
    )


def log_softmax_with_no_call(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of no call, whose logit is 0, and of each class.

    Args:
        logits: Shape `(batch, classes)`.

    Returns:
        float32, shape `(batch, 1 + classes)`; no call comes first.
    """
    return nn.functional.pad(logits.float(), (1, 0)).log_softmax(dim=1)


def softmax_log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Log-odds `log(p / (1 - p))`, where `p` is the softmax of the logits and the logit 0 of no call.

    Args:
        logits: Shape `(batch, classes)`.

    Returns:
        Same shape and type.
    """
    wide = logits.float()
    share = wide - nn.functional.pad(wide, (1, 0)).logsumexp(dim=1, keepdim=True)
    # 1 - p is exact if p is small. At most one p is above 1/2: there, 1 - p is the sum of the others.
    is_likely = share > -math.log(2)
    others = nn.functional.pad(wide.masked_fill(is_likely, -torch.inf), (1, 0)).logsumexp(dim=1, keepdim=True)
    odds = share - torch.log1p(-share.clamp(max=-math.log(2)).exp())
    return torch.where(is_likely, wide - others, odds).to(logits.dtype)


def softmax_loss(
    log_probabilities: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of a softmax over no call and the classes; several classes may be present.

    The target is spread evenly over the classes that are present. Unknown classes are then left out of the softmax, so
    that they are neither learned nor unlearned. If no class is present, the target is no call or one of the unknown
    classes, whichever it is: the loss is the negative logarithm of the sum of their probabilities.

    Args:
        log_probabilities: Shape `(batch, 1 + classes)`, no call first (see `log_softmax_with_no_call`).
        labels: 1, 0 or -100, shape `(batch, classes)`.
        weights: Weight of each class, shape `(classes,)`; by default 1. The weight of no call is 1.

    Returns:
        Shape `(batch, classes)`, float32: the loss of the clip at each known class, and 0 at unknown ones. So a clip
        counts by its known classes, as in binary cross-entropy.
    """
    no_call, classes = log_probabilities[:, :1], log_probabilities[:, 1:]
    is_present, is_known = labels == 1, labels != MASKED
    number = is_present.sum(dim=1, keepdim=True)
    target = is_present / number.clamp(min=1)
    target = target if weights is None else target * weights
    known = torch.cat([no_call, classes.masked_fill(~is_known, -torch.inf)], dim=1).logsumexp(dim=1, keepdim=True)
    present = target.sum(dim=1, keepdim=True) * known - (target * classes).sum(dim=1, keepdim=True)
    absent = -torch.cat([no_call, classes.masked_fill(is_known, -torch.inf)], dim=1).logsumexp(dim=1, keepdim=True)
    return torch.where(number > 0, present, absent) * is_known


KenyaBirdsForAudioClassification.register_for_auto_class(AUTO_CLASS)
