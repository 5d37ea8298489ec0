"""The Chinese of what the exercise says, by the English text that the sources have (messages.py)."""

from __future__ import annotations

# fmt: off
CHINESE: dict[str, str] = {
    # --- tasks, levels, grades ----------------------------------------------------------------------------------
    "addLinear": "addLinear",
    "addSoftmax": "addSoftmax",
    "addGELU": "addGELU",
    "addEmbedding": "addEmbedding",
    "addLayerNorm": "addLayerNorm",
    "self_attention": "self_attention",
    "the LayerNorm plugin in the network": "网络里的 LayerNorm 插件",
    "the fused LayerNorm kernel": "融合的 LayerNorm kernel",
    "the fused kernel in fp16 and bf16": "融合 kernel 的 fp16 和 bf16",
    "the optimised LayerNorm kernel": "优化的 LayerNorm kernel",
    "the calibrator's range": "校准器的范围",
    "the calibrator's batches": "校准器的批次",
    "the EmbLayerNorm kernel": "EmbLayerNorm kernel",
    "the sum in the SkipLayerNorm kernel": "SkipLayerNorm kernel 里的相加",
    "one product for Q, K and V": "Q、K、V 合成一次乘法",
    "the mask of padded batches": "填充批次的掩码",
    "the mask of packed batches": "打包批次的掩码",
    "及格 (pass)": "及格",
    "优秀 (excellent)": "优秀",
    "进阶 (advanced)": "进阶",
    "projects": "大作业",
    "not started": "未开始",
    "wrong": "错误",
    "right": "正确",
    "compiled, not run": "已编译，未运行",
    "not graded": "未评分",
    "none yet": "暂无",
    # --- the report ---------------------------------------------------------------------------------------------
    "The exercise": "练习",
    "task": "任务",
    "level": "等级",
    "grade": "评分",
    "found": "发现",
    "likely cause": "可能的原因",
    "page": "页面",
    "{number} {title}: ": "{number} {title}：",
    "  {label}: {text}": "  {label}：{text}",
    "grading {numbers} ...": "正在评分：{numbers} ……",
    "task {number}: {status} ({seconds:.0f} s)": "任务 {number}：{status}（{seconds:.0f} 秒）",
    "{level}: {right} of {count} right": "{level}：{count} 题中 {right} 题正确",
    "level reached: {level}": "达到的等级：{level}",
    "next: task {number}, {title}: {page}": "下一步：任务 {number}，{title}：{page}",
    "next: grade the kernels on a machine with an NVIDIA GPU": "下一步：在有 NVIDIA GPU 的机器上给 kernel 评分",
    "seed {seed}, {seconds:.0f} s; the same shapes and values again: make grade SEED={seed}":
        "种子 {seed}，{seconds:.0f} 秒；重现同样的形状和数值：make grade SEED={seed}",
    "{blank} of {count} places are still blank, in {files}": "{count} 处空白中还有 {blank} 处没有写，在 {files}",
    "search for TODO {number}": "请搜索 TODO {number}",
    "the plugin library cannot be built: {error}": "插件库无法构建：{error}",
    "its code calls that of {unmet}": "它的代码要调用{unmet}",
    "task {number}, {title}, which is {status}": "任务 {number}（{title}），而那一题的状态是“{status}”",
    "stopped after {limit} s (--time-limit)": "运行 {limit} 秒后被终止（--time-limit）",
    "a loop that never ends, or threads of a kernel that wait for each other": "死循环，或者 kernel 的线程互相等待",
    "memory that is no longer there: TensorRT reads weights when it builds, and they must live until then":
        "内存已经释放：TensorRT 到构建时才读权重，权重必须存活到那时",
    "the process ended by {signal}{last}": "进程因 {signal} 结束{last}",
    "the grading ended with code {code}{last}": "评分以退出码 {code} 结束{last}",
    # --- the work folder ----------------------------------------------------------------------------------------
    "{folder}: {count} tasks are blank; each is marked with TODO and its number\n"
    "next: cd {folder}, make grade, and docs/tutorial/README.md":
        "{folder}：挖空了 {count} 个任务，每处都标有 TODO 和任务编号\n"
        "下一步：cd {folder}，make grade，然后读 docs/tutorial/README.zh-CN.md",
    "{path} is no work folder of the exercise: {record} is missing; make one with: make exercise DIR=my_bert, and "
    "grade inside of it":
        "{path} 不是练习文件夹：缺少 {record}；请用 make exercise DIR=my_bert 新建一个，并在其中评分",
    "make the work folder again: make exercise DIR=...": "请重新建立练习文件夹：make exercise DIR=...",
    "{project} is a work folder itself; make another one from the project that it was made of":
        "{project} 本身就是练习文件夹；请在生成它的原项目里再建一个",
    "{folder} exists already and is left as it is; grade it with make grade inside of it, or name another folder: "
    "make exercise DIR=other":
        "{folder} 已经存在，没有改动它；请在其中运行 make grade 评分，或换一个文件夹：make exercise DIR=other",
    "{path} does not hold what it should; {remedy}": "{path} 的内容不对；{remedy}",
    "the file was moved or deleted, or is not UTF-8": "文件被移走或删除了，或者不是 UTF-8",
    "cannot read {name}: {reason}": "无法读取 {name}：{reason}",
    # --- any task -----------------------------------------------------------------------------------------------
    "{file}, line {line}: {error}": "{file} 第 {line} 行：{error}",
    "{file}, line {line}": "{file} 第 {line} 行",
    "a syntax error: Python cannot read the file": "语法错误：Python 无法读取这个文件",
    "its code calls what is still blank: {place}: {error}": "它的代码调用了还没有写的部分：{place}：{error}",
    "{name} {shape} differs in {bad} of {count} elements, first in {first}: {found:.7g}, expected {wanted:.7g} "
    "(error {error:.1e} of the largest value, allowed {allowed:.1e}); {given}":
        "{name} {shape} 的 {count} 个元素中有 {bad} 个不一致，第一个在 {first}：{found:.7g}，应为 {wanted:.7g}"
        "（误差是最大值的 {error:.1e}，允许 {allowed:.1e}）；{given}",
    "{name} is {shape}, expected {wanted_shape}; {given}": "{name} 的形状是 {shape}，应为 {wanted_shape}；{given}",
    "a value is not finite": "有的值不是有限数",
    "return is missing": "缺少 return",
    # --- layer norm ---------------------------------------------------------------------------------------------
    "E[x²] − mean² cancels where the mean is large: sum up (x − mean)²":
        "均值很大时 E[x²] − mean² 会相消：请对 (x − mean)² 求和",
    "the sample variance (divided by H − 1); layer norm has the population variance (divided by H)":
        "用了样本方差（除以 H − 1）；LayerNorm 用总体方差（除以 H）",
    "epsilon is missing": "缺少 epsilon",
    "epsilon is 1e-5, TensorRT's default; set the epsilon that was asked for":
        "epsilon 是 TensorRT 的默认值 1e-5；请设成指定的 epsilon",
    "epsilon is outside of the root: expected √(variance + epsilon)":
        "epsilon 在根号外面：应为 √(variance + epsilon)",
    "divided by the variance, not by its root": "除以了方差，而不是它的平方根",
    "the mean is not subtracted": "没有减去均值",
    "the statistics are over the axis before the last one": "统计量沿倒数第二维计算",
    "the statistics are over all axes but the first": "统计量沿第一维以外的所有维计算",
    "the statistics are over all axes": "统计量沿所有维计算",
    "gamma is missing": "缺少 gamma",
    "beta is missing": "缺少 beta",
    "gamma and beta are exchanged": "gamma 和 beta 弄反了",
    "epsilon is not what was asked for": "epsilon 不是指定的值",
    "ordinary rows": "普通的行",
    "variance near epsilon": "方差接近 epsilon",
    "mean 100, deviation 1": "均值 100，标准差 1",
    # --- networks -----------------------------------------------------------------------------------------------
    "the function returns its input as it is": "函数原样返回了输入",
    "the method returns None": "方法返回了 None",
    "a layer is no tensor: return layer.get_output(0)": "层不是张量：请返回 layer.get_output(0)",
    "the method returns a {kind}; expected an ITensor": "方法返回了 {kind}，应为 ITensor",
    "the tensor that is returned is called {found!r}; expected {name!r}": "返回的张量名为 {found!r}，应为 {name!r}",
    "the last layer does not have the name that was given: self._check_layer(layer, name, inputs) sets it":
        "最后一层没有用指定的名字：self._check_layer(layer, name, inputs) 会设置它",
    "the cast back from fp32 is missing": "缺少从 fp32 转回去的 cast",
    "a tensor has the wrong type": "有张量的类型不对",
    "the result is {found}; expected {wanted}": "结果的类型是 {found}，应为 {wanted}",
    "{title}: the network has no {kinds} layer": "{title}：网络里没有 {kinds} 层",
    "{title}: the network does not run with {shapes}: {error}": "{title}：网络不能以 {shapes} 运行：{error}",
    "{title}: no constant of the network holds the {name} {shape}": "{title}：网络里没有常量保存 {name} {shape}",
    "weight ({width_out}, {width_in})": "权重 ({width_out}, {width_in})",
    "weight ({width_in}, {width_in})": "权重 ({width_in}, {width_in})",
    "without a bias": "没有偏置",
    "x of rank 2": "x 的秩为 2",
    "in fp16": "fp16",
    "the bias is missing": "缺少偏置",
    "the bias is subtracted": "减去了偏置",
    "the weight is not transposed: PyTorch stores (out, in), and the product is x @ weightᵀ":
        "权重没有转置：PyTorch 按 (out, in) 存放，乘法是 x @ weightᵀ",
    "{cause}; and the bias is missing": "{cause}；而且缺少偏置",
    "along axis 1": "沿第 1 维",
    "with a mask": "带掩码",
    "in fp16 with a mask": "fp16，带掩码",
    "the softmax is along axis {other}, expected axis {axis}": "softmax 沿第 {other} 维，应沿第 {axis} 维",
    ", TensorRT's default: set the layer's axes": "，这是 TensorRT 的默认值：请设置层的 axes",
    "the mask (bias) is not added": "没有加上掩码 (bias)",
    "the mask (bias) is added after the softmax": "掩码 (bias) 加在了 softmax 之后",
    "the softmax layer reads {found}; expected FLOAT": "softmax 层读入的是 {found}，应为 FLOAT",
    "softmax is computed in fp16: over a long sequence the sum would lose its digits":
        "softmax 用 fp16 计算：序列一长，求和就会丢掉有效数字",
    "kind {kind}": "kind 为 {kind}",
    "GELU by the error function, where the approximation by tanh is asked for":
        "要求 tanh 近似，却用了误差函数的 GELU",
    "GELU by tanh, where the error function is asked for": "要求误差函数，却用了 tanh 的 GELU",
    "ReLU in place of GELU": "用了 ReLU，而不是 GELU",
    "x · sigmoid(1.702 x) in place of GELU": "用了 x · sigmoid(1.702 x)，而不是 GELU",
    "the argument of erf is x: 1/√2 is missing": "erf 的自变量是 x：缺少 1/√2",
    "the argument of erf is √2 x, expected x / √2": "erf 的自变量是 √2 x，应为 x / √2",
    "the factor 1/2 is missing": "缺少系数 1/2",
    "1 is not added to erf": "erf 没有加 1",
    "Φ(x) without the factor x": "只有 Φ(x)，缺少因子 x",
    "decomposed: the network has an ACTIVATION layer; expected elementary layers":
        "decomposed：网络里有 ACTIVATION 层，应由基本层组成",
    "kind decomposed is made by TensorRT's own GELU": "kind 为 decomposed 时用了 TensorRT 自带的 GELU",
    "table ({rows}, {width}), ids of rank 2": "表 ({rows}, {width})，下标的秩为 2",
    "table ({rows}, {rows}), ids of rank 1": "表 ({rows}, {rows})，下标的秩为 1",
    "addGather along axis 1": "addGather 沿第 1 维",
    "the elements are taken along axis {other}, expected axis {axis}": "沿第 {other} 维取了元素，应沿第 {axis} 维",
    "the result has the right elements with its axes in another order": "结果的元素正确，但各维的顺序不对",
    "the squares overflow fp16: compute in fp32": "平方在 fp16 里溢出：请用 fp32 计算",
    "in fp16, values of thousands": "fp16，数值为几千",
    "the normalization layer reads {found}; expected FLOAT": "归一化层读入的是 {found}，应为 FLOAT",
    "the statistics are computed in fp16, where squares overflow from 256 on":
        "统计量用 fp16 计算，而 fp16 的数从 256 起平方就会溢出",
    "the normalization layer has the epsilon {found:.7g}; expected {epsilon:.7g}":
        "归一化层的 epsilon 是 {found:.7g}，应为 {epsilon:.7g}",
    "the layer's epsilon is not set": "没有设置层的 epsilon",
    "a padded batch with a mask": "带掩码的填充批次",
    "one sequence": "一条序列",
    "self_attention does not read {name}": "self_attention 没有读取 {name}",
    "one of Q, K and V is not computed": "Q、K、V 中有一个没有计算",
    "the mask (self.score_bias) is not added to the scores": "掩码 (self.score_bias) 没有加到分数上",
    "the scale 1/√D is missing": "缺少缩放 1/√D",
    "the scores are divided by D, expected √D": "分数除以了 D，应为 √D",
    "the scores are divided by √H, expected √D; D = H / N is the width of a head":
        "分数除以了 √H，应为 √D；D = H / N 是一个头的宽度",
    "the softmax is along the queries, expected the last axis, the keys":
        "softmax 沿 query 计算，应沿最后一维，即 key",
    "Q and K are exchanged": "Q 和 K 弄反了",
    "K and V are exchanged": "K 和 V 弄反了",
    "Q in the place of K": "K 的位置上用了 Q",
    "K in the place of V": "V 的位置上用了 K",
    "the heads are split by a reshape alone, without the transpose (S, N, D) -> (N, S, D)":
        "分头只做了 reshape，缺少转置 (S, N, D) -> (N, S, D)",
    "kernel {kernel!r}, epsilon {epsilon:g}, {precision}": "kernel {kernel!r}，epsilon {epsilon:g}，{precision}",
    "{title}: the network has {count} plugin layers; expected one": "{title}：网络里有 {count} 个插件层，应有一个",
    "{title}: the plugin is {found!r}; expected 'LayerNorm'": "{title}：插件是 {found!r}，应为 'LayerNorm'",
    "the field {name} is not what addLayerNorm was asked for": "字段 {name} 不是 addLayerNorm 得到的参数",
    "{title}: the field {name} is {found!r}; expected {value!r}":
        "{title}：字段 {name} 是 {found!r}，应为 {value!r}",
    "{title}: the plugin has {count} inputs; expected x, gamma, beta":
        "{title}：插件有 {count} 个输入，应为 x、gamma、beta",
    "{title}: the plugin reads {found}; expected {wanted}": "{title}：插件读入的是 {found}，应为 {wanted}",
    "the cast of x is missing": "缺少 x 的 cast",
    # --- kernels ------------------------------------------------------------------------------------------------
    "the kernel does not compile": "kernel 编译不过",
    "the CUDA compiler {path} does not work: {reason}": "CUDA 编译器 {path} 无法工作：{reason}",
    "it ended with code {code}": "它以退出码 {code} 结束",
    "no CUDA compiler (nvcc) is installed: pip install -r {file}":
        "没有安装 CUDA 编译器 (nvcc)：pip install -r {file}",
    "compiled without an error; not run: needs an NVIDIA GPU and PyTorch for CUDA":
        "编译没有错误；没有运行：需要 NVIDIA GPU 和支持 CUDA 的 PyTorch",
    "thread {thread} of block {block} reads {size} bytes out of bounds":
        "block {block} 的线程 {thread} 越界读取 {size} 字节",
    "thread {thread} of block {block} writes {size} bytes out of bounds":
        "block {block} 的线程 {thread} 越界写入 {size} 字节",
    "in {space} memory": "{space} 内存",
    "at an address that is not of any tensor": "地址不属于任何张量",
    "in {kernel}": "在 {kernel}",
    "{file} line {line}": "{file} 第 {line} 行",
    "an index runs past the end of a row or of the tensor: check the loop's limit, and rows against the grid":
        "下标越过了行尾或张量的末尾：请检查循环的上限，以及行数与 grid 的关系",
    "two threads use one element of shared memory without a barrier between: {race}":
        "两个线程使用共享内存的同一元素，其间没有同步：{race}",
    "a __syncthreads() is missing": "缺少 __syncthreads()",
    "the launch fails: {reason}": "启动失败：{reason}",
    "this type is not launched": "这种类型没有启动",
    "the kernel fails: {reason}": "kernel 出错：{reason}",
    "an access out of bounds": "越界访问",
    "the kernel writes outside of its tensors": "kernel 写到了张量之外",
    "an index runs past the end of a row": "下标越过了行尾",
    "the kernel reads its input before the kernel in front of it has written it":
        "前一个 kernel 还没有写完，这个 kernel 就读了它的输出",
    "waitForPreviousKernel() is missing, or stands behind a load": "缺少 waitForPreviousKernel()，或者它在读取之后",
    "{title}: x {shape} {type}, weights {weights}, epsilon {epsilon:g}":
        "{title}：x {shape} {type}，权重 {weights}，epsilon {epsilon:g}",
    "values of thousands": "数值为几千",
    "constant rows": "每行为常数",
    "sums or squares overflow fp16: add up in float": "和或平方在 fp16 里溢出：请用 float 累加",
    "the variance of a constant row is 0, and must not become negative by rounding":
        "常数行的方差是 0，不能因舍入变成负数",
    "only the first warp's part of each row is added up": "每行只累加了第一个 warp 的部分",
    "only the first warp's part of both sums is added up": "两次求和都只累加了第一个 warp 的部分",
    "nothing is written: the kernel is empty, or returns before it stores":
        "什么都没有写入：kernel 是空的，或者在存储之前就返回了",
    "some rows are not written: compare the grid with the number of rows": "有些行没有写入：请比较 grid 与行数",
    "{rows} rows of {width} in fp16 on {device}: {yours:.2f} µs; basic {basic:.2f} µs, {of_basic:.2f} times as long; "
    "torch.compile {compiled:.2f} µs, {of_compiled:.2f} times as long":
        "{device} 上 {rows} 行、每行 {width} 个 fp16：{yours:.2f} µs；"
        "basic {basic:.2f} µs，是它的 {of_basic:.2f} 倍；"
        "torch.compile {compiled:.2f} µs，是它的 {of_compiled:.2f} 倍",
    "expected at least {basic:g} and {compiled:g} times": "应分别至少为 {basic:g} 倍和 {compiled:g} 倍",
    "right, but not optimised: read x once, in vectors of 16 bytes, and keep the row in registers":
        "结果正确，但没有优化：x 只读一遍，每次 16 字节，并把行留在寄存器里",
    # --- kernels that normalise a sum ---------------------------------------------------------------------------
    "words": "词表",
    "token types": "token 类型表",
    "positions": "位置表",
    "ordinary values": "普通的数值",
    "sums of 80000": "和为 80000",
    "sums of 90000": "和为 90000",
    "the sum is rounded to the type of x, or overflows in it: add up in float":
        "和被舍入成 x 的类型，或在其中溢出：请用 float 相加",
    "the sum is rounded to the type of the tables, or overflows in it: add up in float":
        "和被舍入成表的类型，或在其中溢出：请用 float 相加",
    "{title}: {rows} rows of {width}, {type}, weights {weights}, epsilon {epsilon:g}; outputs: {outputs}":
        "{title}：{rows} 行、每行 {width}，{type}，权重 {weights}，epsilon {epsilon:g}；输出：{outputs}",
    " with factors": "，带系数",
    "row {row} has the id {id} in the table of {table}, which has {size} rows":
        "第 {row} 行在{table}里的下标是 {id}，而表有 {size} 行",
    "{first}; expected {wanted} in its row of {name}": "{first}；{name} 的这一行应为 {wanted}",
    "nanUnless is not called with the validity of the row's ids": "没有用该行下标是否有效来调用 nanUnless",
    "some rows are not written, or are NaN without an id outside its table":
        "有些行没有写入，或者下标没有越界却是 NaN",
    "missing in the sum: {name}": "和里缺少：{name}",
    "twice in the sum: {name}": "和里加了两次：{name}",
    "x is added twice, and skip is missing": "x 加了两次，缺少 skip",
    "{name} is int8, and its scale is missing": "{name} 是 int8，缺少它的 scale",
    "the sum is stored without normalising it": "和没有归一化就存储了",
    "the factors multiply y as well": "系数把 y 也乘了",
    "the factors do not multiply the output in 8 bits": "8 位输出没有乘以系数",
    "the output in 8 bits is not divided by its scale": "8 位输出没有除以它的 scale",
    "quantized is up to {steps:.2f} half steps off, expected 1; {given}":
        "quantized 最多相差 {steps:.2f} 个半步长，应为 1；{given}",
    "the value is rounded twice, or not to the nearest: give quantize the fp32 value":
        "数值舍入了两次，或者没有舍入到最近：请把 fp32 的值交给 quantize",
    # --- calibration --------------------------------------------------------------------------------------------
    "percentile_range of {count} values in {bins} bins up to {limit:g}, percentile {percentile:.4g}: {found}, "
    "expected {expected:.7g}":
        "percentile_range：{count} 个值，{bins} 格，上限 {limit:g}，百分位 {percentile:.4g}：{found}，"
        "应为 {expected:.7g}",
    "the bin's upper end: interpolate inside of the bin": "取了格的上端：请在格内插值",
    "the bin's lower end: interpolate inside of the bin": "取了格的下端：请在格内插值",
    "the bin's centre: interpolate inside of the bin": "取了格的中点：请在格内插值",
    "a share of the range, expected a share of the values": "按范围的比例计算，应按值的个数的比例",
    "the number of the bin, expected a value: multiply by the width of a bin":
        "返回了格的编号，应为数值：请乘以格宽",
    "the percentile is in percent: divide it by 100": "百分位以百分数给出：请除以 100",
    "mse_range of {count} values in {bins} bins, amax {amax:.5g}, {kind}":
        "mse_range：{count} 个值，{bins} 格，amax {amax:.5g}，{kind}",
    "{given}: {found!r}, expected a number": "{given}：{found!r}，应为一个数",
    "{given}: the range {found:.6g} has the squared error {error:.4g}; expected about {wanted:.6g} with {least:.4g}":
        "{given}：范围 {found:.6g} 的平方误差是 {error:.4g}；应约为 {wanted:.6g}，误差 {least:.4g}",
    "; or ": "；或者",
    "only clipping counts, not rounding": "只算了截断，没有算舍入",
    "only rounding counts, not clipping": "只算了舍入，没有算截断",
    "each bin counts the same: weight its error with the number of its values":
        "各格权重相同：误差要乘以格里值的个数",
    "the error is that of {other}": "用的是 {other} 的误差",
    "the range with the largest error": "取了误差最大的范围",
    "batches of {count} sentences": "batches，{count} 句",
    "{given}: None": "{given}：None",
    "{given}: {count} sentences are in no batch, first that of line {line}":
        "{given}：有 {count} 句不在任何批次里，第一句是第 {line} 行",
    "the last batch is lost": "丢了最后一个批次",
    "{given}: a sentence is in two batches": "{given}：有一句在两个批次里",
    "{given}: a batch is empty": "{given}：有一个批次是空的",
    "a batch is begun before there is a sentence for it": "还没有句子就开始了一个批次",
    "{given}: batch {number} has the lengths {lengths}": "{given}：批次 {number} 的长度是 {lengths}",
    "same_length is ignored": "没有理会 same_length",
    "{given}: batch {number} has {rows} rows of {longest} tokens, more than {largest}":
        "{given}：批次 {number} 有 {rows} 行、每行 {longest} 个 token，超过 {largest}",
    "the limit is for tokens without padding; padding counts as well": "只限制了填充之外的 token；填充也要计入",
    "{given}: {padded} tokens with padding for {real} without":
        "{given}：含填充 {padded} 个 token，不含填充 {real} 个",
    "the sentences are not sorted by length": "句子没有按长度排序",
    "{given}: {count} batches of {padded} tokens in all": "{given}：{count} 个批次，共 {padded} 个 token",
    "the batches are not filled": "批次没有装满",
    "batch_inputs: {has}; expected {wanted}": "batch_inputs：{has}，应为 {wanted}",
    "batch_inputs: {name} is {dtype} {found}; expected int32 {wanted}":
        "batch_inputs：{name} 是 {dtype} {found}，应为 int32 {wanted}",
    "TensorRT's inputs are int32": "TensorRT 的输入是 int32",
    "S is the longest sentence's length": "S 是最长一句的长度",
    "batch_inputs: {name}, row {row}, a sentence of {count} tokens, begins with {found}; expected {wanted}":
        "batch_inputs：{name} 的第 {row} 行（{count} 个 token 的句子）开头是 {found}，应为 {wanted}",
    "the mask does not say where the padding is: 1 for a token, 0 for padding":
        "掩码没有标出填充：token 为 1，填充为 0",
    "padding is 0; expected the sentence's last token, so that no other value enters the network":
        "填充为 0；应为句子的最后一个 token，这样不会有别的值进入网络",
    "the padding stands before the tokens": "填充放在了 token 之前",
    # --- projects -----------------------------------------------------------------------------------------------
    "{name} is not installed: make .venv/.installed-dev": "没有安装 {name}：make .venv/.installed-dev",
    "its tests call what is still blank: {blank}": "它的测试调用了还没有写的部分：{blank}",
    "{count} tests passed": "{count} 个测试通过",
    "pytest printed nothing": "pytest 没有输出",
}
