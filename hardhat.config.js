// Compiles with the soljson.js of the pinned npm package, so that Hardhat downloads no compiler.
const { subtask } = require("hardhat/config");
const { TASK_COMPILE_SOLIDITY_GET_SOLC_BUILD } = require("hardhat/builtin-tasks/task-names");

subtask(TASK_COMPILE_SOLIDITY_GET_SOLC_BUILD, async () => ({
  compilerPath: require.resolve("solc/soljson.js"),
  isSolcJs: true,
  version: require("solc/package.json").version,
  longVersion: require("solc").version().replace(".Emscripten.clang", ""),
}));

module.exports = {
  paths: { sources: "contracts", artifacts: "build/hardhat", cache: "cache_hardhat" },
  solidity: {
    version: require("solc/package.json").version,
    settings: { evmVersion: "shanghai", optimizer: { enabled: true, runs: 10000 }, metadata: { bytecodeHash: "none", appendCBOR: false } },
  },
  networks: { hardhat: { hardfork: "shanghai" }, localhost: { url: "http://127.0.0.1:8545" } },
};
