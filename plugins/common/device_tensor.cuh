// Tensors on host and device for the check programs. Every tensor is an allocation of its own with its exact size, so
// memcheck reports an access one byte beyond its end.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cuda_runtime_api.h>
#include <vector>

namespace bert
{

inline void check(cudaError_t status, char const* what)
{
    if (status != cudaSuccess)
    {
        std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
        std::exit(1);
    }
}

// Fills memory with 0xFF bytes, which is NaN in all floating types, so elements that a kernel does not write show.
// The check programs need it besides initcheck, which does not see the writes of TMA copies.
template <typename T>
void poison(T* data, size_t size)
{
    check(cudaMemset(data, 0xFF, size * sizeof(T)), "cudaMemset");
}

template <typename T>
class Tensor
{
public:
    explicit Tensor(std::vector<T> const& values)
        : mSize(values.size())
    {
        check(cudaMalloc(&mData, mSize * sizeof(T)), "cudaMalloc");
        check(cudaMemcpy(mData, values.data(), mSize * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    explicit Tensor(size_t size) // uninitialised: initcheck reports reads before the first write
        : mSize(size)
    {
        check(cudaMalloc(&mData, mSize * sizeof(T)), "cudaMalloc");
    }
    Tensor(Tensor const&) = delete;
    Tensor& operator=(Tensor const&) = delete;
    ~Tensor()
    {
        cudaFree(mData);
    }
    T* data() const
    {
        return mData;
    }
    std::vector<T> values() const
    {
        std::vector<T> values(mSize);
        check(cudaMemcpy(values.data(), mData, mSize * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
        return values;
    }

private:
    T* mData{};
    size_t mSize;
};

} // namespace bert
