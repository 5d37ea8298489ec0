// Calls the plugins' runtime functions in orders that TensorRT does not promise, and prints what each enqueue answers and
// logs. Tensors have no rows, so that an enqueue that goes through launches nothing and needs no GPU.
#include <cstdio>
#include <dlfcn.h>
#include <memory>
#include <string>
#include <unistd.h>
#include <vector>

#include "common/plugin_interfaces.h"

using namespace nvinfer1;

namespace
{

constexpr int64_t kROWS = 0;
constexpr int64_t kHIDDEN = 32;

PluginTensorDesc tensor(DataType type, std::vector<int64_t> const& shape)
{
    PluginTensorDesc desc{};
    desc.type = type;
    desc.dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), desc.dims.d);
    return desc;
}

PluginTensorDesc half(std::vector<int64_t> const& shape)
{
    return tensor(DataType::kHALF, shape);
}

struct Case
{
    std::string plugin;
    std::vector<PluginField> fields;
    std::vector<PluginTensorDesc> inputs;
    PluginTensorDesc output;
};

class Caller
{
public:
    explicit Caller(Case const& described)
        : mCase(described)
    {
    }
    void tellShapes(IPluginV3& plugin) const
    {
        std::printf("  onShapeChange: %d\n",
            runtime(plugin).onShapeChange(mCase.inputs.data(), count(), &mCase.output, 1));
    }
    void tellWrongShapes(IPluginV3& plugin) const
    {
        auto inputs = mCase.inputs;
        inputs.back().type = DataType::kBOOL;
        std::printf(
            "  onShapeChange: %d\n", runtime(plugin).onShapeChange(inputs.data(), count(), &mCase.output, 1));
    }
    void enqueue(IPluginV3& plugin) const
    {
        std::vector<void const*> const inputs(mCase.inputs.size());
        void* output = nullptr;
        int32_t const status = runtime(plugin).enqueue(
            mCase.inputs.data(), &mCase.output, inputs.data(), &output, nullptr, nullptr);
        std::printf("  enqueue: %d\n", status);
    }
    static IPluginV3OneRuntime& runtime(IPluginV3& plugin)
    {
        return *static_cast<IPluginV3OneRuntime*>(
            plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    }

private:
    int32_t count() const
    {
        return static_cast<int32_t>(mCase.inputs.size());
    }

    Case const& mCase;
};

void callInWrongOrders(IPluginCreatorV3One& creator, Case const& described)
{
    using Owner = std::unique_ptr<IPluginV3>;
    Caller const caller{described};
    PluginFieldCollection const fields{
        static_cast<int32_t>(described.fields.size()), described.fields.data()};
    Owner const created{creator.createPlugin("layer", &fields, TensorRTPhase::kRUNTIME)};
    std::puts("created");
    caller.enqueue(*created);
    Owner const attached{Caller::runtime(*created).attachToContext(nullptr)};
    std::puts("attached");
    caller.enqueue(*attached);
    std::puts("told");
    caller.tellShapes(*attached);
    caller.enqueue(*attached);
    std::puts("clone of told");
    Owner const clone{attached->clone()};
    caller.enqueue(*clone);
    std::puts("told wrong shapes");
    caller.tellWrongShapes(*attached);
    caller.enqueue(*attached);
    std::puts("clone of told wrong shapes");
    Owner const cloneOfWrong{attached->clone()};
    caller.enqueue(*cloneOfWrong);
    std::puts("told again");
    caller.tellShapes(*attached);
    caller.enqueue(*attached);
}

} // namespace

int main(int /*count*/, char** arguments)
{
    // Without a logger the plugins write to stderr: into the same lines, in order.
    std::setvbuf(stdout, nullptr, _IONBF, 0);
    dup2(STDOUT_FILENO, STDERR_FILENO);

    float const epsilon = 1e-12F;
    int32_t const heads = 1;
    PluginField const epsilonField{"epsilon", &epsilon, PluginFieldType::kFLOAT32, 1};
    auto const rows = half({kROWS, kHIDDEN});
    auto const weight = half({kHIDDEN});
    auto const ids = tensor(DataType::kINT32, {kROWS});
    auto const table = half({5, kHIDDEN});
    std::vector<Case> const cases{
        {"LayerNorm", {epsilonField}, {rows, weight, weight}, rows},
        {"SkipLayerNorm", {epsilonField}, {rows, rows, weight, weight, weight}, rows},
        {"EmbLayerNorm", {epsilonField}, {ids, ids, ids, table, table, table, weight, weight}, rows},
        {"QkvToContext", {{"num_heads", &heads, PluginFieldType::kINT32, 1}}, {half({kROWS, 3 * kHIDDEN})},
            rows},
        {"Linear", {}, {rows, half({kHIDDEN, kHIDDEN}), weight}, rows},
        {"LinearSkipLayerNorm", {epsilonField},
            {rows, half({kHIDDEN, kHIDDEN}), rows, weight, weight, weight}, rows},
    };

    void* const library = dlopen(arguments[1], RTLD_NOW);
    auto const getCreators
        = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    int32_t count = 0;
    auto* const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        auto& creator = *static_cast<IPluginCreatorV3One*>(creators[i]);
        for (Case const& described : cases)
        {
            if (described.plugin == creator.getPluginName() && described.plugin == arguments[2])
            {
                callInWrongOrders(creator, described);
                return 0;
            }
        }
    }
    return 1;
}
