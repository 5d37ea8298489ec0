// libbert_plugins_loader.so, for Triton's option plugins=: registers the plugins of libbert_plugins.so, which lies beside
// it.
//
// Triton only opens the library that the option names. libbert_plugins.so registers nothing by itself, since TensorRT's
// registry asks a library for its plugins (getCreators) when it loads it. So this library, when it is opened, lets the
// registry load it, that of the TensorRT in this process. plugins/triton_loader.py compiles it, with any C compiler.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define PLUGINS "libbert_plugins.so"

// IPluginRegistry::loadLibrary, by its place in the table of virtual functions. TensorRT 10 has three functions for
// older plugins before the destructor, which takes two places, and one after it; TensorRT 11 and TensorRT for RTX have
// none of them.
#define PLACE_IN_TENSORRT_10 10
#define PLACE_IN_TENSORRT_11 6

typedef void* (*GetPluginRegistry)(void);
typedef int32_t (*GetVersion)(void);
typedef void* (*LoadLibrary)(void* registry, char const* path);

static void fail(char const* reason)
{
    fprintf(stderr, "libbert_plugins_loader.so: %s; the plugins are not registered\n", reason);
}

// The TensorRT that the process has loaded, or null.
static void* findTensorRT(void)
{
    char const* const names[] = {"libnvinfer.so.11", "libnvinfer.so.10", "libtensorrt_rtx.so.1"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); ++i)
    {
        void* const handle = dlopen(names[i], RTLD_LAZY | RTLD_NOLOAD);
        if (handle != NULL)
        {
            return handle;
        }
    }
    return NULL;
}

__attribute__((constructor)) static void registerPlugins(void)
{
    Dl_info here;
    char path[PATH_MAX];
    if (dladdr((void*) &registerPlugins, &here) == 0
        || strlen(here.dli_fname) + sizeof(PLUGINS) > sizeof(path))
    {
        fail("it cannot find its own folder");
        return;
    }
    strcpy(path, here.dli_fname);
    char* const slash = strrchr(path, '/');
    strcpy(slash == NULL ? path : slash + 1, PLUGINS);

    void* const tensorRT = findTensorRT();
    if (tensorRT == NULL)
    {
        fail("no TensorRT 10 or 11 is loaded");
        return;
    }
    GetPluginRegistry const getPluginRegistry = (GetPluginRegistry) dlsym(tensorRT, "getPluginRegistry");
    GetVersion const getVersion = (GetVersion) dlsym(tensorRT, "getInferLibVersion");
    void* const registry = getPluginRegistry == NULL ? NULL : getPluginRegistry();
    if (registry == NULL || getVersion == NULL)
    {
        fail("TensorRT has no registry of plugins");
        return;
    }
    int32_t const major = getVersion() / 10000; // 1 for TensorRT for RTX
    void** const functions = *(void***) registry;
    int const place = major == 10 ? PLACE_IN_TENSORRT_10 : PLACE_IN_TENSORRT_11;
    if (((LoadLibrary) functions[place])(registry, path) == NULL)
    {
        fail("TensorRT cannot load " PLUGINS " beside it");
    }
}
