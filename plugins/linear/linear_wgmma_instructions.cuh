// The wgmma of the linear layer, one name for all element types: 64 rows of the first operand and up to 256 of the second, both
// in shared memory with k innermost, which is the only layout 8-bit types have. One instruction multiplies 32 bytes of
// k: 16 elements of fp16 and bf16, 32 of E4M3 and int8.
#pragma once

#include "common/element.cuh"
#include "common/hopper_wgmma.cuh"
#include "common/tensor_cores.cuh"

#include <cstdint>
#include <type_traits>

namespace bert
{

// The numbers of the registers that hold the sums.
#define BERT_R16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define BERT_R32 BERT_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define BERT_R40 BERT_R32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define BERT_R48 BERT_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define BERT_R56 BERT_R48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define BERT_R64 BERT_R48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define BERT_R72 BERT_R64 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define BERT_R80 BERT_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define BERT_R88 BERT_R80 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define BERT_R96 BERT_R80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define BERT_R104 BERT_R96 ",%96,%97,%98,%99,%100,%101,%102,%103"
#define BERT_R112 BERT_R96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define BERT_R128 BERT_R112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// The sums as operands, groups i and following of 8 columns. C is "+f" or "+r".
#define BERT_S1(C, i) C(sums[i][0]), C(sums[i][1]), C(sums[i][2]), C(sums[i][3])
#define BERT_S2(C, i) BERT_S1(C, i), BERT_S1(C, (i) + 1)
#define BERT_S4(C, i) BERT_S2(C, i), BERT_S2(C, (i) + 2)
#define BERT_S8(C, i) BERT_S4(C, i), BERT_S4(C, (i) + 4)
#define BERT_S10(C, i) BERT_S8(C, i), BERT_S2(C, (i) + 8)
#define BERT_S12(C, i) BERT_S8(C, i), BERT_S4(C, (i) + 8)
#define BERT_S14(C, i) BERT_S12(C, i), BERT_S2(C, (i) + 12)
#define BERT_S16(C, i) BERT_S8(C, i), BERT_S8(C, (i) + 8)
#define BERT_S18(C, i) BERT_S16(C, i), BERT_S2(C, (i) + 16)
#define BERT_S20(C, i) BERT_S16(C, i), BERT_S4(C, (i) + 16)
#define BERT_S22(C, i) BERT_S20(C, i), BERT_S2(C, (i) + 20)
#define BERT_S24(C, i) BERT_S16(C, i), BERT_S8(C, (i) + 16)
#define BERT_S26(C, i) BERT_S24(C, i), BERT_S2(C, (i) + 24)
#define BERT_S32(C, i) BERT_S16(C, i), BERT_S16(C, (i) + 16)

#define BERT_WGMMA(COLUMNS, TYPES, SIGNS, REGISTERS, A, B, ADD, SUMS)                                        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ADD ", 0;\n"                                           \
                 "wgmma.mma_async.sync.aligned.m64n" COLUMNS TYPES " {" REGISTERS "}, %" A ", %" B           \
                 ", p" SIGNS ";\n}"                                                                          \
        : SUMS                                                                                               \
        : "l"(a), "l"(b), "r"(accumulate))

// sums (64, 8 * kGROUPS) = a (64, 32 bytes of k) b (as many of k, 8 * kGROUPS), added to what they hold if `accumulate`.
#define BERT_DEFINE_PRODUCT(T, C, TYPES, SIGNS)                                                              \
    template <int kGROUPS>                                                                                   \
    __device__ void multiplyShared(                                                                          \
        Accumulator<T>(&sums)[kGROUPS][4], uint64_t a, uint64_t b, int accumulate, T /*type*/)               \
    {                                                                                                        \
        if constexpr (kGROUPS == 8)                                                                          \
        {                                                                                                    \
            BERT_WGMMA("64", TYPES, SIGNS, BERT_R32, "32", "33", "34", BERT_S8(C, 0));                       \
        }                                                                                                    \
        else if constexpr (kGROUPS == 10)                                                                    \
        {                                                                                                    \
            BERT_WGMMA("80", TYPES, SIGNS, BERT_R40, "40", "41", "42", BERT_S10(C, 0));                      \
        }                                                                                                    \
        else if constexpr (kGROUPS == 12)                                                                    \
        {                                                                                                    \
            BERT_WGMMA("96", TYPES, SIGNS, BERT_R48, "48", "49", "50", BERT_S12(C, 0));                      \
        }                                                                                                    \
        else if constexpr (kGROUPS == 14)                                                                    \
        {                                                                                                    \
            BERT_WGMMA("112", TYPES, SIGNS, BERT_R56, "56", "57", "58", BERT_S14(C, 0));                     \
        }                                                                                                    \
        else if constexpr (kGROUPS == 16)                                                                    \
        {                                                                                                    \
            BERT_WGMMA("128", TYPES, SIGNS, BERT_R64, "64", "65", "66", BERT_S16(C, 0));                     \
        }                                                                                                    \
        else if constexpr (kGROUPS == 18)                                                                    \
        {                                                                                                    \
            BERT_WGMMA("144", TYPES, SIGNS, BERT_R72, "72", "73", "74", BERT_S18(C, 0));                     \
        }                                                                                                    \
        else if constexpr (kGROUPS == 20)                                                                    \
        {                                                                                                    \
            BERT_WGMMA("160", TYPES, SIGNS, BERT_R80, "80", "81", "82", BERT_S20(C, 0));                     \
        }                                                                                                    \
        else if constexpr (kGROUPS == 22)                                                                    \
        {                                                                                                    \
            BERT_WGMMA("176", TYPES, SIGNS, BERT_R88, "88", "89", "90", BERT_S22(C, 0));                     \
        }                                                                                                    \
        else if constexpr (kGROUPS == 24)                                                                    \
        {                                                                                                    \
            BERT_WGMMA("192", TYPES, SIGNS, BERT_R96, "96", "97", "98", BERT_S24(C, 0));                     \
        }                                                                                                    \
        else if constexpr (kGROUPS == 26)                                                                    \
        {                                                                                                    \
            BERT_WGMMA("208", TYPES, SIGNS, BERT_R104, "104", "105", "106", BERT_S26(C, 0));                 \
        }                                                                                                    \
        else                                                                                                 \
        {                                                                                                    \
            static_assert(kGROUPS == 32);                                                                    \
            BERT_WGMMA("256", TYPES, SIGNS, BERT_R128, "128", "129", "130", BERT_S32(C, 0));                 \
        }                                                                                                    \
    }

BERT_DEFINE_PRODUCT(__half, "+f", "k16.f32.f16.f16", ", 1, 1, 0, 0")
BERT_DEFINE_PRODUCT(__nv_bfloat16, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0, 0")
BERT_DEFINE_PRODUCT(E4m3, "+f", "k32.f32.e4m3.e4m3", ", 1, 1")
BERT_DEFINE_PRODUCT(int8_t, "+r", "k32.s32.s8.s8", "")

// The compiler knows nothing of products that are still being computed: their sums are not to be read before this line.
template <typename Sum, int kGROUPS>
__device__ void settleSums(Sum (&sums)[kGROUPS][4])
{
#pragma unroll
    for (int n = 0; n < kGROUPS; ++n)
    {
        if constexpr (std::is_same_v<Sum, float>)
        {
            asm volatile("" : BERT_S1("+f", n));
        }
        else
        {
            asm volatile("" : BERT_S1("+r", n));
        }
    }
}

#undef BERT_DEFINE_PRODUCT
#undef BERT_WGMMA
#undef BERT_S32
#undef BERT_S26
#undef BERT_S24
#undef BERT_S22
#undef BERT_S20
#undef BERT_S18
#undef BERT_S16
#undef BERT_S14
#undef BERT_S12
#undef BERT_S10
#undef BERT_S8
#undef BERT_S4
#undef BERT_S2
#undef BERT_S1
#undef BERT_R128
#undef BERT_R112
#undef BERT_R104
#undef BERT_R96
#undef BERT_R88
#undef BERT_R80
#undef BERT_R72
#undef BERT_R64
#undef BERT_R56
#undef BERT_R48
#undef BERT_R40
#undef BERT_R32
#undef BERT_R16

} // namespace bert
