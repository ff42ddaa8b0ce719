// Runs a GGUF file in the llama.cpp of node-llama-cpp, on the processor; what llama.cpp logs goes to standard error.
// node llama_cpp.mjs FOLDER_OF_NODE_MODULES [MODEL.gguf CONTEXT TOKENS PROMPT [ADAPTER.gguf]]; says the version without a file.
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, file, context, tokens, prompt, adapter] = process.argv.slice(2);
const entry = join(resolve(folder), "node_modules", "node-llama-cpp", "dist", "index.js");
const {getLlama} = await import(pathToFileURL(entry).href);
const logger = (level, message) => process.stderr.write(message + "\n");
const llama = await getLlama({gpu: false, build: "never", logLevel: "info", logger, progressLogs: false});
process.stderr.write(`version: ${llama.llamaCppRelease.release} (node-llama-cpp)\n`);

if (file !== undefined) {
    const model = await llama.loadModel({modelPath: resolve(file), gpuLayers: 0, useMmap: false});
    // node-llama-cpp adds a token to the batch of a model with a sliding window; llama.cpp's own programs do not.
    const sliding = (model.fileInsights.swaSize ?? 0) > 0 ? 1 : 0;
    const made = await model.createContext({contextSize: Number(context), batchSize: Math.min(Number(context), 512) - sliding,
        threads: 1, flashAttention: true, lora: adapter ? {adapters: [{filePath: resolve(adapter)}]} : undefined});
    const ids = [...model.tokenize(prompt)];
    let left = Number(tokens);
    for await (const _ of made.getSequence().evaluate(ids.length > 0 ? ids : [0], {temperature: 0, yieldEogToken: true}))
        if (--left === 0) break;
    await new Promise((done) => setTimeout(done, 50));  // the log comes after what it tells of
}
process.stderr.write("", () => process.exit(0));
