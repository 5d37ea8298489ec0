// GELU(x) = x Phi(x), Phi the normal distribution: the form with erf that BERT was trained with, not the tanh
// approximation.
#pragma once

#include "common/exponential.cuh"

namespace bert
{

// max(x, 0). NaN stays NaN; fmaxf would return 0.
inline __device__ float positivePart(float x)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float result;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
    return result;
#else
    return x < 0.0F ? 0.0F : x;
#endif
}

// GELU(x) = max(x, 0) - |x| Phi(-|x|), which has no cancellation, and Phi(-a) = 2^q(a) with a polynomial q: 10
// instructions, no branch. The coefficients are a weighted least squares fit to log2(Phi(-a)) on [0, 5.75]. Lawson's
// iteration increased the weights where the error was large until the error was uniform; the target weight is 1 where
// a Phi(-a) is a normal fp16 number, and falls with a Phi(-a) beyond. With coefficients rounded to fp32, the relative
// error of Phi(-a) is at most 7e-6 up to a = 4.2. Beyond, where fp16 numbers are denormal, the error of a Phi(-a) is
// at most 4e-10 (half the smallest fp16 is 3e-8). From kLARGEST on, where q would soon grow again, a Phi(-a) is less
// than 1e-30.
inline __device__ float gelu(float x)
{
    constexpr float kLARGEST = 13.0F;
    float const a = fminf(fabsf(x), kLARGEST);
    float q = 3.2444535e-05F;
    q = fmaf(q, a, -7.484182e-04F);
    q = fmaf(q, a, 7.942258e-03F);
    q = fmaf(q, a, -5.3051792e-02F);
    q = fmaf(q, a, -4.5917046e-01F);
    q = fmaf(q, a, -1.1510366F);
    q = fmaf(q, a, -1.0000076F);
    return fmaf(-a, exponential2(q), positivePart(x));
}

inline __device__ float activate(float value, bool withGelu)
{
    return withGelu ? gelu(value) : value;
}

// GELU(x) * factor for a result in 8 bits, where q of degree 3 will do: the relative error of Phi(-a) is at most 5e-3 up
// to 4.5, where half a step of E4M3 is 3e-2; beyond, a Phi(-a) is off by at most 1e-7. The error of GELU(x) is at most
// 8.4e-4. q falls for ever, so that no bound is needed, but x must be finite. With fewer instructions the largest products
// are 10 % faster, although their tensor cores are at work meanwhile: what all have to share is the board's power.
inline __device__ float quantizedGelu(float x, float factor)
{
    float const a = fabsf(x);
    float q = -0.01443057F;
    q = fmaf(q, a, -0.5405752F);
    q = fmaf(q, a, -1.0900861F);
    q = fmaf(q, a, -1.0073315F);
    return fmaf(-a * factor, exponential2(q), positivePart(x * factor));
}

} // namespace bert
