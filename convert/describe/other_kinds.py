"""Recognises files that are not whole models: a table of tensor names of LoRAs, embeddings, ControlNets and others.

Source of the names: the tools' own files, as docs/checkpoints.md lists them. The first row that fits is the answer.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.convert.errors import FileKind
from sdjax.convert.names import naming
from sdjax.nn.parts import NEEDED_FOLDERS

Shapes = Mapping[str, tuple[int, ...]]
MOST_LETTERS = 300_000  # of a file's names that are looked through: those of 3,500 tensors, below a second


_READS = "sdjax reads whole Stable Diffusion v1 and v2 models"
AS_ADAPTER = "name the model that it is for, and this file by --lora (sdjax.convert.load_adapter)"
AS_EMBEDDING = "name the model that it is for, and this file by --embedding (sdjax.convert.load_embedding)"
AS_HYPERNETWORK = "name the model that it is for, and this file by --hypernetwork (sdjax.convert.load_hypernetwork)"
AS_IP_ADAPTER = "name the model that it is for, and this file by --image-prompt (sdjax.convert.load_ip_adapter)"
AS_ANNOTATOR = "name it by --annotator of `sdjax hint` (sdjax.convert.load_annotator)"
AS_JUDGE = "it judges pictures: name it by its flag of `sdjax evaluate` (sdjax.convert.load_inception, load_dinov2)"
AS_MOTION = "name the model, and this file by --motion of `sdjax animate` (sdjax.convert.load_motion)"
AS_MOTION_LORA = "name the model, and this file by --motion-lora of `sdjax animate` (sdjax.convert.load_motion_lora)"
AS_TAESD = "name a whole model here, and this file as its autoencoder by --vae, or for previews by --taesd"
AS_UPSCALER = "name the picture to enlarge, and this file by --model (sdjax upscale --model FILE)"
AS_WIDENED = (
    "name the model that it changes, and this file by --widen of `sdjax relight` (sdjax.load(..., widen=FILE)); if it "
    "is a whole UNet, name the checkpoint that it was taken from"
)
AS_CONTROL = "name the model that it is for, and this file by --control (sdjax.convert.load_controlnet)"
AS_T2I = "name the model that it is for, and this file by --control (sdjax.convert.load_t2i)"
_COMPLETE = "name a whole model: the checkpoint that it was taken from, or the pipeline's folder"
_OTHER = f"{_READS}: name one of these"
_UNQUANTISED = "name the model in float32, float16 or bfloat16"
_VAE = "name a whole model here, and this file as its autoencoder by vae="

# Beginnings and parts of names, what has them, and what to do. Searched for with re.search in any name of a file.
_ROWS: tuple[tuple[str, str, str], ...] = (
    # In a file whose UNet seems to be there: what it holds is not what the names alone say
    (r"\.(scale_weight|weight_scale|scale_input|absmax|nested_absmax|quant_map|quant_state\.|SCB$|qweight|qzeros|wscales"
     r"|comfy_quant|weight_scale_2|smooth_factor)|^scaled_fp8$",
     "a quantised model (fp8, int8, nf4 or the like, with scales beside its weights)", _UNQUANTISED),
    (r"joint_blocks\.\d", "Stable Diffusion 3", _OTHER),
    (r"(^|\.)(double_blocks|single_transformer_blocks)\.\d.*(?<!lora_A\.weight)(?<!lora_B\.weight)(?<!down\.weight)"
     r"(?<!up\.weight)(?<!alpha)$", "Flux or a model like it", _OTHER),
    (r"conditioner\.embedders\.1\.|text_encoder_2/|(^|[./])add_embedding\.linear", "Stable Diffusion XL", _OTHER),
    (r"cond_stage_model\.roberta\.|text_encoder/roberta\.", "AltDiffusion, whose text encoder is XLM-RoBERTa", _OTHER),
    (r"first_stage_model\.quantize\.embedding|^vqvae/|^movq/",
     "a latent diffusion model with a vector-quantised autoencoder", _OTHER),
    (r"(^|\.)(input_blocks|output_blocks)\.\d+\.\d+\.temporal_transformer\.",
     "a model whose UNet has AnimateDiff's motion modules in it", _OTHER),
    (r"(time_stack|time_mixer|temporal_res_block|temporal_transformer_blocks|temopral_conv|temp_convs)\b",
     "a video model (as Stable Video Diffusion)", _OTHER),
    (r"(^|[./])position_net\.|\.fuser\.attn\.", "GLIGEN, whose UNet is told boxes", _OTHER),
)  # fmt: skip
_PARTS: tuple[tuple[str, str, str], ...] = (
    (r"motion_modules\.\S*[._]lora[._](down|up|A|B)\.", "a motion LoRA for AnimateDiff", AS_MOTION_LORA),
    (r"motion_modules\.\d", "motion modules for AnimateDiff", AS_MOTION),
    (r"^lora_controlnet$", "a control-LoRA, which makes a ControlNet of a UNet", AS_CONTROL),
    (r"^lora_te2_|^lora_te3_|^lora_prior_unet_|text_encoder_2\..*lora", "a LoRA for Stable Diffusion XL", _OTHER),
    (r"^lora_(transformer|unet)_(double|single|joint|single_transformer)_|^transformer\..*lora|^diffusion_model\."
     r"(double_blocks|single_blocks|joint_blocks|blocks|layers)\..*lora",
     "a LoRA for Flux or another transformer", _OTHER),
    (r"\.hada_(w1|w2|t1|t2)|\.lokr_|\.(a1|a2|b1|b2)\.weight$|\.on_input$|\.(w|b)_norm$|oft_blocks|oft_R|oft_diag|\.boft_"
     r"|\.diff(_b)?$|\.(set|reshape)_weight$|^lycoris_|\.hada_",
     "a LoRA of LyCORIS's kinds (LoHa, LoKr, OFT, ...)",
     AS_ADAPTER),
    (r"lora_magnitude_vector|\.dora_scale|lora_(A|B|E|embedding_[AB])(\.[\w-]+)?(\.weight)?$|^base_model\.model\."
     r"|\.ia3_l|vera_lambda|\.lora_layer\.", "a LoRA in PEFT's names", AS_ADAPTER),
    (r"_lora\.(down|up)\.weight|\.lora\.(down|up)\.weight|lora_linear_layer\.(down|up)|processor\..*lora",
     "a LoRA in diffusers' names", AS_ADAPTER),
    (r"^(lora|loha|lokr|oft)_\w|\.lora_(down|up|mid)\b|\.lora_(down|up)$|^bundle_emb\.",
     "a LoRA in kohya's names", AS_ADAPTER),
    (r":(up|down)$|^\d+$", "a LoRA of cloneofsimo's kind, or a list of tensors", AS_ADAPTER),
    (r"(^|\.)string_to_(param|token)|^emb_params$|^clip_[lgh]$|^<[^>]{1,60}>$",
     "a textual inversion (an embedding of a word), which is no model", AS_EMBEDDING),
    (r"^(320|640|768|1024|1280)\.[01]\.\w", "a hypernetwork, which is no model", AS_HYPERNETWORK),
    (r"^(Conv2d_1a_3x3|Mixed_5b)\.", "Inception v3", AS_JUDGE),
    (r"^blocks\.\d+\.ls1\.gamma$|^(dinov2\w*\.)?encoder\.layer\.\d+\.layer_scale1\.", "DINOv2", AS_JUDGE),
    (r"^block1\.convs\.0\.", "HED, a network of soft edges for hints", AS_ANNOTATOR),
    (r"^model2\.0\.conv_block\.1\.", "a network of line drawings for hints", AS_ANNOTATOR),
    (r"^(model\d_\d\.)?Mconv1_stage2_L1\.", "OpenPose's network of bodies, for hints", AS_ANNOTATOR),
    (r"^(model\d\.)?Mconv1_stage2\.", "OpenPose's network of hands or faces, for hints", AS_ANNOTATOR),
    (r"(^|\.)control_model\.|(^|\.)input_hint_block\.|(^|\.)zero_convs\.\d|controlnet_(cond_embedding|down_blocks|mid"
     r"_block)|^controlnet_blocks", "a ControlNet", AS_CONTROL),
    (r"image_proj(_model)?\.|^ip_adapter\.|to_[kv]_ip\b|^adapter_modules\.", "an IP-Adapter", AS_IP_ADAPTER),
    (r"^(module\.)?(adapter\.)?body\.\d+\.(in_conv|block[12]|resnets\.|body\.\d)", "a T2I-Adapter", AS_T2I),
    (r"^(params_ema\.|params\.)?(model\.\d+\.sub\.|model\.1\.sub|(RRDB_trunk|trunk_conv|conv_first|HRconv|upconv1)\."
     r"|body\.\d+\.rdb\d|conv_body\.|model\.0\.weight$)", "an upscaler (ESRGAN or Real-ESRGAN)", AS_UPSCALER),
    (r"^(params_ema\.|params\.)?body\.\d+\.(weight|bias)$", "an upscaler (Real-ESRGAN's compact kind)", AS_UPSCALER),
    (r"residual_group\.blocks|relative_position_bias_table|^layers\.\d+\.residual_group",
     "an upscaler (SwinIR, HAT or the like)",
     "name a Stable Diffusion model; `sdjax upscale` enlarges with Stable Diffusion's x4 upscaler"),
    (r"stylegan_decoder\.|^quantize\.embedding|final_conv\.weight$|^(generator|encoder)\.blocks\.\d",
     "a restorer of faces, or a vector-quantised autoencoder", _OTHER),
    (r"^(encoder|decoder|taesd_encoder|taesd_decoder)?\.?(layers\.)?\d+\.conv\.\d\.",
     "TAESD, a tiny autoencoder", AS_TAESD),
    (r"(^|[./])concept_embeds$|special_care_embeds", "a safety checker, which is no model that makes pictures",
     "name a whole model here, and this by --safety-checker (sdjax.convert.load_safety_checker)"),
    (r"^prd_embedding$|^prior/", "a prior, which makes image embeddings of texts",
     "name a whole unCLIP model here, and this by sdjax.convert.load_prior"),
    (r"^(vision_model|visual_projection|visual|image_encoder|clip_vision)\.",
     "a CLIP image tower, which is no model that makes pictures", _COMPLETE),
    (r"^(model\.diffusion_model\.)?(adaln_single|caption_projection)\.|scale_shift_table$", "PixArt or a model like it",
     _OTHER),
    (r"clip_txt(_pooled)?_mapper|effnet_mapper|clip_img_mapper|^(down|up)_blocks\.\d+\.\d+\.channelwise\.",
     "Stable Cascade or Wuerstchen", _OTHER),
    (r"single_blocks\.\d|transformer_blocks\.\d+\.(ff_context|norm1_context)|^(model\.)?(model\.diffusion_model\.)?"
     r"(double_layers|single_layers|noise_refiner|context_refiner|patch_embedding|x_embedder|patchify_proj|mlp_t5|"
     r"style_embedder|img_in|pos_embed|t_embedder)\b", "a diffusion transformer", _OTHER),
    (r"^(shared\.weight$|encoder\.block\.\d+\.layer)", "a T5 text encoder", _OTHER),
    (r"(^|\.)text_model\.(encoder|embeddings)|(^|\.)transformer\.resblocks\.\d|^token_embedding\.weight$|^(encoder"
     r"|embeddings)\.(layers\.\d|token_embedding)", "a text encoder alone", _COMPLETE),
    (r"(^|\.)(encoder\.down\.\d|decoder\.up\.\d|encoder\.down_blocks|decoder\.up_blocks|encoder\.mid|decoder\.mid)",
     "an autoencoder (VAE) alone", _VAE),
    (r"^(pretrained\.(model|act)|scratch\.|dpt\.|neck\.)", "a depth network alone",
     "name a model that looks at depth here, and this file as its depth network by depth="),
    (r"^features\.\d+\.(weight|bias)$|^lin\d\.model", "VGG or LPIPS, which training an autoencoder takes", _COMPLETE),
    (r"exp_avg(_sq)?$|(^|\.)optimizer(_states)?\b|param_groups|^state\.\d+\.|momentum_buffer$",
     "an optimizer's state, which a training leaves beside its model", "name the model"),
    (r"^(model\.)?(layers|h|blocks)\.\d+\.(self_attn|attn|mlp)\.|lm_head|^blk\.\d", "a language model", _OTHER),
    (r"(^|\.)(input_blocks|output_blocks|middle_block)\.\d|^(unet[./])?(down_blocks|up_blocks)\.\d|^time_embedding\.",
     "a UNet alone, without autoencoder and text encoder", _COMPLETE),
    (r"(^|\.)transformer_blocks\.\d|^blocks\.\d", "a transformer of another kind", _OTHER),
)  # fmt: skip
_CLASSES = {  # of a diffusers folder's model_index.json: beginnings of names, and what they run
    "StableDiffusionXL": "Stable Diffusion XL", "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "Flux", "PixArt": "PixArt", "StableCascade": "Stable Cascade", "Wuerstchen": "Wuerstchen",
    "Kandinsky": "Kandinsky", "IF": "DeepFloyd IF", "StableVideoDiffusion": "Stable Video Diffusion",
    "AnimateDiff": "AnimateDiff", "AltDiffusion": "AltDiffusion",
    "HunyuanDiT": "HunyuanDiT", "Sana": "Sana", "AuraFlow": "AuraFlow", "Lumina": "Lumina", "Wan": "Wan", "LTX": "LTX",
    "CogVideoX": "CogVideoX", "QwenImage": "Qwen-Image", "Chroma": "Chroma", "AudioLDM": "AudioLDM",
}  # fmt: skip
_OTHERS = ("text_encoder_2", "text_encoder_3", "transformer", "motion_adapter", "vqvae", "movq", "text_unet", "decoder")
_WIDTHS = (768, 1024, 1280)
_UNET = naming.LDM_PREFIXES["unet"]
_DECODER = re.compile(rf"(unet/|{re.escape(_UNET)}|diffusion_model\.)?(up_blocks|output_blocks)\.0\.")  # of a UNet


def kind_of_tensors(shapes: Shapes) -> FileKind | None:
    """Returns the kind of a file with tensors of these names and shapes; None for a model, and for unknown files."""
    if not _holds_model(shapes) and all(
        any(name.startswith(naming.LDM_PREFIXES[part]) for name in shapes) for part in ("vae", "text")
    ):
        return _NO_UNET
    ends = itertools.accumulate(map(len, shapes))
    looked_at = [name for name, end in zip(shapes, ends) if end <= MOST_LETTERS]
    if any("motion_modules." in name for name in looked_at) and any("controlnet_" in name for name in looked_at):
        return _SPARSE
    if (channels := _widened(shapes)) is not None:
        lights = {8: " (IC-Light's for a foreground)", 12: " (IC-Light's for foreground and background)"}
        what = f"a UNet alone that takes {channels} channels, or differences to one that takes 4"
        return FileKind(what + lights.get(channels, ""), AS_WIDENED)
    rows = _ROWS if _holds_model(shapes) else (*_ROWS, *_PARTS)
    for pattern, what, advice in rows:
        search = re.compile(pattern).search
        if any(search(name) for name in looked_at):
            return FileKind(what, advice)
    labels = shapes.get(f"{_UNET}label_emb.0.0.weight", ())
    if len(labels) == 2 and labels[1] in (2816, 2560):
        return FileKind("Stable Diffusion XL" + (", its refiner" if labels[1] == 2560 else ""), _OTHER)
    words = len(shapes) <= 2 and all(len(s) in (1, 2) and s[-1] in _WIDTHS for s in shapes.values())
    if words and not any("." in name for name in shapes):
        return FileKind("a textual inversion (an embedding of a word), which is no model", AS_EMBEDDING)
    return None


_SPARSE = FileKind(
    "a SparseCtrl, a ControlNet with motion modules, which sdjax does not run", "use motion modules alone"
)
_NO_UNET = FileKind("autoencoder and text encoder of a model, without its UNet", _COMPLETE)
UNET_ALONE = FileKind("a UNet alone, without autoencoder and text encoder", _COMPLETE)


def kind_of_folder(configs: Mapping[str, Mapping[str, Any]]) -> FileKind | None:
    """Returns the kind of a diffusers folder with these JSON files, if it is not a Stable Diffusion v1 or v2 one."""
    index = configs.get("model_index.json")
    if index is None:
        return None
    name = index.get("_class_name")
    name = name if isinstance(name, str) and re.fullmatch(r"\w{1,80}", name) else "of no named class"
    if name == "StableDiffusionLatentUpscalePipeline":
        return FileKind("the x2 latent upscaler", AS_UPSCALER)
    there = {part for part, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]}
    beginning = max((b for b in _CLASSES if name.startswith(b)), key=len, default=None)
    needed = there.issuperset(NEEDED_FOLDERS) or not there  # an index that names no parts says nothing of them
    if needed and beginning is None and not there.intersection(_OTHERS):
        return None
    model = "" if beginning is None else f" ({_CLASSES[beginning]})"
    return FileKind(f"a folder of diffusers' {name}{model}", _OTHER)


def kind_of_component(class_name: Any, wanted: Sequence[str], what: str) -> FileKind | None:
    """Returns the kind of a component whose config.json names another class than those wanted."""
    if class_name is None or class_name in wanted or not isinstance(class_name, str):
        return None
    name = class_name if re.fullmatch(r"\w{1,80}", class_name) else "another class"
    return FileKind(f"a folder whose {what} is diffusers' {name}, not {' or '.join(wanted)}", _OTHER)


def _widened(shapes: Shapes) -> int | None:
    """Returns the input channels of a UNet that is alone and takes more than a latent; None for other files."""
    others = (
        naming.LDM_PREFIXES["vae"],
        naming.LDM_PREFIXES["text"],
        "vae/",
        "text_encoder/",
        "text/",
        "control_model.",
    )
    if any(name.startswith(others) for name in shapes) or not any(_DECODER.match(name) for name in shapes):
        return None
    firsts = [f"{before}input_blocks.0.0.weight" for before in (_UNET, "diffusion_model.", "")]
    found = next((shapes[name] for name in (*firsts, "conv_in.weight", "unet/conv_in.weight") if name in shapes), ())
    return found[1] if len(found) == 4 and found[1] > 4 else None


def _holds_model(shapes: Shapes) -> bool:
    beginnings = (f"{_UNET}output_blocks.", naming.ema_name(f"{_UNET}output_blocks."), "unet/up_blocks")
    return any(name.startswith(beginnings) for name in shapes)
