// Measures one GGUF file in one llama.cpp process: node llama_fit.mjs FOLDER_OF_NODE_MODULES MODEL.gguf < request > answer
// Request: {"vocabulary_only": false, "context": n, "batch": 512, "kv": "F16", "flash": true, "threads": 2,
//           "fill": tokens to read for the memory, "speeds": [{"prompt": n, "generate": m}, ...], "tries": k,
//           "most": largest token id, "processor": true (seconds of this process on the processor, not of the wall)}
// Answer:  {"resident": {stage: bytes without JavaScript's heap}, "peak": bytes with it, "buffers": {name: bytes}, "load_seconds": s,
//           "speeds": [{"prompt", "generate", "prefill": tokens/s, "decode": tokens/s}]}; best of the tries.
import {readFileSync} from "node:fs";
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, file] = process.argv.slice(2);
const entry = join(resolve(folder), "node_modules", "node-llama-cpp", "dist", "index.js");
const {getLlama} = await import(pathToFileURL(entry).href);
const request = JSON.parse(readFileSync(0, "utf8"));
const resident = {}, buffers = {};

function now() {  // milliseconds
    if (!request.processor) return performance.now();
    const {user, system} = process.cpuUsage();
    return (user + system) / 1000;
}

const status = (key) => Number(readFileSync("/proc/self/status", "utf8").match(new RegExp(`${key}:\\s*(\\d+)`))[1]) * 1024;

async function note(stage) {  // JavaScript's own heap is not the model's
    for (let i = 0; i < 4; i++) {
        await new Promise((done) => setTimeout(done, 50));
        globalThis.gc();
    }
    const {heapTotal, external} = process.memoryUsage();
    resident[stage] = status("VmRSS") - heapTotal - external;
}

function logger(level, message) {  // llama.cpp says how large its buffers are
    for (const [, name, size] of message.matchAll(/(\w+) buffer size =\s*([\d.]+) MiB/g))
        buffers[name] = (buffers[name] ?? 0) + Number(size) * 2 ** 20;
    for (const [, size] of message.matchAll(/AMX model buffer size =\s*([\d.]+) MiB/g))  // weights in AMX's own layout
        buffers.amx = (buffers.amx ?? 0) + Number(size) * 2 ** 20;
}

await note("program");
const llama = await getLlama({gpu: false, build: "never", logLevel: "info", logger});
await note("libraries");
const begun = performance.now();
const model = await llama.loadModel({modelPath: resolve(file), gpuLayers: 0, useMmap: false,
    vocabOnly: request.vocabulary_only ?? false});
const loadSeconds = (performance.now() - begun) / 1000;
await note("model");
const speeds = [];
if (!request.vocabulary_only) {
    const sliding = (model.fileInsights.swaSize ?? 0) > 0 ? 1 : 0;  // node-llama-cpp adds a token to their batch
    const context = await model.createContext({contextSize: request.context, batchSize: request.batch - sliding,
        threads: request.threads, flashAttention: request.flash,
        experimentalKvCacheKeyType: request.kv, experimentalKvCacheValueType: request.kv});
    await note("context");
    const sequence = context.getSequence();
    const ids = (count) => Array.from({length: count}, (_, index) => 100 + (index * 7919) % (request.most ?? 20000));
    if (request.fill) {
        await sequence.evaluateWithoutGeneratingNewTokens(ids(request.fill));
        for await (const _ of sequence.evaluate([100], {temperature: 0, yieldEogToken: true})) break;
        await note("filled");
    }
    for (const {prompt, generate} of request.speeds ?? []) {
        const best = {prompt, generate, prefill: 0, decode: 0};
        for (let i = 0; i < request.tries; i++) {
            await sequence.clearHistory();
            let start = now();
            await sequence.evaluateWithoutGeneratingNewTokens(ids(prompt));
            best.prefill = Math.max(best.prefill, prompt / (now() - start) * 1000);
            let made = 0;
            if (generate === 0) continue;
            for await (const _ of sequence.evaluate([100], {temperature: 0, yieldEogToken: true})) {
                if (made === 0) start = now();
                if (made++ === generate) break;
            }
            best.decode = Math.max(best.decode, generate / (now() - start) * 1000);
        }
        speeds.push(best);
    }
}
const answer = {resident, peak: status("VmHWM"), buffers, load_seconds: loadSeconds, speeds};
process.stdout.write(JSON.stringify(answer), () => process.exit(0));
