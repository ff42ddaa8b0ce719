// Runs a GGUF file in llama.cpp: node llama_cpp.mjs FOLDER_OF_NODE_MODULES MODEL.gguf < request.json > answer.json
// Request: {"prompts": [[token ids], ...], "tokens": n, "texts": ["...", ...], "probabilities": true, "threads": 1,
//           "lora": "ADAPTER.gguf", "back": [[token ids], ...], "contexts": [{"size": n, "kv": "F16"}, ...],
//           "ends": [token ids]}
// Answer:  {"greedy": [[token ids], ...], "tokenized": [[token ids], ...], "probabilities": [[[id, p], ...], ...],
//           "load_seconds": s, "tokens_per_second": r, "texts": ["...", ...],
//           "ends": [those ids at which an answer ends], "buffers": {name: MiB of the model's}, "contexts": [{name: MiB}, ...]}
// "back" turns ids into texts at once, as llama.cpp's own detokenizer does. Sizes are what llama.cpp logs.
import {readFileSync} from "node:fs";
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, file] = process.argv.slice(2);
const entry = join(resolve(folder), "node_modules", "node-llama-cpp", "dist", "index.js");
const {getLlama} = await import(pathToFileURL(entry).href);
const request = JSON.parse(readFileSync(0, "utf8"));

const begun = performance.now();
let buffers = {};

function logger(level, message) {
    if (level === "error" || level === "fatal") process.stderr.write(message + "\n");
    for (const [, name, size] of message.matchAll(/(\w+) buffer size =\s*([\d.]+) MiB/g))
        buffers[name] = (buffers[name] ?? 0) + Number(size);
}

const llama = await getLlama({gpu: false, build: "never", logLevel: "info", logger, progressLogs: false});
const model = await llama.loadModel({modelPath: resolve(file), gpuLayers: 0, useMmap: false});
const settled = () => new Promise((done) => setTimeout(done, 50));  // the log comes after what it tells of
await settled();
const modelBuffers = buffers;
const loadSeconds = (performance.now() - begun) / 1000;

const count = request.tokens ?? 0;
const prompts = request.prompts ?? [];
const longest = Math.max(0, ...prompts.map((ids) => ids.length)) + count + 1;
const greedy = [], probabilities = [];
let generated = 0, seconds = 0;
if (prompts.length > 0) {
    const context = await model.createContext({contextSize: Math.max(64, longest), batchSize: Math.max(64, longest),
        threads: request.threads ?? 1, flashAttention: false,
        lora: request.lora ? {adapters: [{filePath: resolve(request.lora)}]} : undefined,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"});
    for (const ids of prompts) {
        const sequence = context.getSequence();
        if (request.probabilities) {
            const input = ids.map((id, index) => index === ids.length - 1
                ? [id, {generateNext: {probabilities: true, options: {temperature: 0}}}] : id);
            const last = (await sequence.controlledEvaluate(input)).at(-1);
            probabilities.push([...last.next.probabilities.entries()]);
            await sequence.clearHistory();
        }
        const made = [];
        const start = performance.now();
        if (count > 0)
            for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
                made.push(token);
                if (made.length === count) break;
            }
        seconds += (performance.now() - start) / 1000;
        generated += made.length;
        greedy.push(made);
        sequence.dispose();
    }
}
const tokenized = (request.texts ?? []).map((text) => [...model.tokenize(text, true)]);
const texts = (request.back ?? []).map((ids) => model.detokenize(ids, true));
const contexts = [];
for (const {size, kv} of request.contexts ?? []) {
    buffers = {};
    // node-llama-cpp adds a token to the batch of a model with a sliding window
    const sliding = (model.fileInsights.swaSize ?? 0) > 0 ? 1 : 0;
    const context = await model.createContext({contextSize: size, batchSize: Math.min(size, 512) - sliding, threads: 1,
        flashAttention: true, experimentalKvCacheKeyType: kv, experimentalKvCacheValueType: kv});
    await settled();
    contexts.push(buffers);
    await context.dispose();
}
const ends = (request.ends ?? []).filter((id) => model.isEogToken(id));
const answer = {greedy, texts, ends, buffers: modelBuffers, contexts, tokenized, probabilities, load_seconds: loadSeconds,
    tokens_per_second: seconds > 0 ? generated / seconds : 0};
process.stdout.write(JSON.stringify(answer), () => process.exit(0));
