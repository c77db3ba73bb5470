"""What the page says in its two languages; the sentences on files and images are the library's own, in English."""

from __future__ import annotations

from convert.report.contents import Label

LANGUAGES = {"zh": "中文", "en": "English"}

WORDS = {
    "intro": Label(
        "将 PyTorch 权重转换为 Paddle 权重，并用两个框架核对结果；也可以用 CondenseNet V2、CondenseNet、CSPNet、"
        "CondConv、DenseNet 识别图像。不会执行上传文件中的任何代码，服务停止后文件即被删除。",
        "Convert PyTorch checkpoints to Paddle, checked in both frameworks, or see what CondenseNet V2, CondenseNet, "
        "CSPNet, CondConv and DenseNet make of an image. Nothing in an uploaded file is executed, and everything is "
        "deleted when the server stops.",
    ),
    "language": Label("语言", "Language"),
    # The first tab
    "convert_tab": Label("转换权重", "Convert"),
    "checkpoint": Label("PyTorch 权重 (.pth, .pt, .safetensors)", "PyTorch checkpoint (.pth, .pt, .safetensors)"),
    "more_options": Label("更多选项", "More options"),
    "options": Label("选项，写法与 torch2paddle 命令相同", "Options, as the command torch2paddle takes them"),
    "convert": Label("转换", "Convert"),
    "files": Label("下载权重、说明文件和报告", "Download: weights, sidecar, report"),
    "report": Label("核对报告", "Report"),
    "info": Label("paddle-dense info 的输出", "What paddle-dense info says"),
    "network": Label("网络", "Network"),
    "parameters": Label("参数量", "Parameters"),
    "form": Label("形式", "Form"),
    "condensed": Label("精简后的形式", "condensed form"),
    "trained": Label("训练时的形式", "trained form"),
    "was_condensed": Label("训练时的形式，已精简", "trained form, now condensed"),
    "macs": Label("计算量", "MACs"),
    "for_size": Label("{macs:,.1f} M，输入 {size} x {size}", "{macs:,.1f} M for {size} x {size} pixels"),
    "assumed": Label("假设", "Assumed"),
    "left_out": Label("未使用的张量", "Left out"),
    "seconds": Label("用时", "Time"),
    "agreement_label": Label("核对", "Check"),
    "agreement": Label(
        "Paddle 与 PyTorch 的 {what} 相差 {difference:.1e}（相对于其幅度）",
        "the {what} of Paddle and PyTorch agree to {difference:.1e} of their scale",
    ),
    "warnings": Label("注意", "Notes"),
    "failed": Label("无法转换", "not converted"),
    # The second tab
    "predict_tab": Label("识别图像", "Predict"),
    "image": Label("图像", "Image"),
    "drop_image": Label("将图像拖放到此处\n- 或 -\n点击上传", "Drop an image here\n- or -\nClick to upload"),
    "examples": Label("示例，点击即可识别", "Examples: click one"),
    "model": Label("网络", "Network"),
    "own_weights": Label("或上传自己的权重，连同 .json 说明文件", "Or your own weights, with their .json"),
    "predict": Label("识别", "Predict"),
    "answer": Label("最可能的五个类别", "Five most probable classes"),
    "heat": Label("网络关注的区域 (Grad-CAM)", "Where the network looks (Grad-CAM)"),
    "not_predicted": Label("无法识别", "no answer"),
    "no_image": Label("请先选择一张图像。", "Choose an image first."),
    "no_checkpoint": Label("请先选择一个权重文件。", "Choose a checkpoint first."),
}


def say(key: str, language: str) -> str:
    """A text of the page.

    Args:
        key: of `WORDS`.
        language: of `LANGUAGES`.
    """
    return getattr(WORDS[key], language)


def preferred(accepted: str) -> str:
    """The first of our languages in a browser's ``Accept-Language``, or English."""
    named = (part.strip().lower()[:2] for part in accepted.split(","))
    return next((language for language in named if language in LANGUAGES), "en")
