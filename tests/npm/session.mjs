// One session of the Hub's JavaScript client; says on stdout, as JSON, what it saw.
// Usage: node session.mjs URL TOKEN, with HUB_CLIENT the folder of the installed package.
import { pathToFileURL } from "node:url";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.HUB_CLIENT}/`);
const hub = await import(pathToFileURL(require.resolve("@huggingface/hub")).href);

const [hubUrl, accessToken] = process.argv.slice(2);
const there = { hubUrl, accessToken };
const repo = "tester/made-by-npm";

async function collect(items) {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
}

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return { status: error.statusCode ?? null, message: error.message };
  }
  return null;
}

const text = async (blob) => (blob === null ? null : await blob.text());
const seen = {};

seen.who = (await hub.whoAmI(there)).name;
seen.listed = await collect(
  hub.listModels({
    ...there,
    search: { tags: ["base_model:finetune:org/base"] },
    sort: "lastModified",
    additionalFields: ["sha", "tags", "filePaths"],
  }),
);
seen.found = (await collect(hub.listModels({ ...there, search: { query: "TUNED-1", owner: "org" } }))).map((m) => m.name);
seen.info = await hub.modelInfo({ ...there, name: "org/tuned-1", additionalFields: ["sha", "cardData"] });
seen.pinned = await hub.modelInfo({ ...there, name: "org/tuned-1", revision: seen.info.sha, additionalFields: ["sha"] })
  .then((model) => model.sha, (error) => error.message);
seen.files = await collect(hub.listFiles({ ...there, repo: "org/tuned-1", recursive: true }));
seen.commits = (await collect(hub.listCommits({ ...there, repo: "org/tuned-1" }))).map((c) => c.oid);
seen.paths = await hub.pathsInfo({ ...there, repo: "org/tuned-1", paths: ["model.safetensors", "none.txt"] });
seen.exists = [
  await hub.fileExists({ ...there, repo: "org/tuned-1", path: "config.json" }),
  await hub.fileExists({ ...there, repo: "org/tuned-1", path: "none.txt" }),
];
seen.header = (await hub.parseSafetensorsMetadata({ ...there, repo: "org/tuned-1" })).header;

const large = { ...there, repo: "org/tuned-1", path: "model.safetensors" };
const blob = await hub.downloadFile({ ...large, xet: false });
seen.size = blob.size;
seen.range = Array.from(new Uint8Array(await blob.slice(100, 164).arrayBuffer()));
seen.small = await text(await hub.downloadFile({ ...there, repo: "org/tuned-1", path: "config.json" }));
seen.pointer = await text(await hub.downloadFile({ ...large, raw: true }));
seen.missing = await hub.downloadFile({ ...there, repo: "org/tuned-1", path: "none.txt" });
seen.gated = await refusal(() => hub.downloadFile({ ...there, repo: "org/gated", path: "config.json" }));
seen.unknown = await refusal(() => hub.modelInfo({ ...there, name: "org/none" }));

seen.created = await hub.createRepo({ ...there, repo, private: true });
seen.again = await refusal(() => hub.createRepo({ ...there, repo }));
const weights = new Uint8Array(3_000_000).map((_, i) => i % 251);
const uploaded = await hub.uploadFiles({
  ...there,
  repo,
  useXet: false,
  commitTitle: "by npm",
  commitDescription: "two files",
  files: [
    { path: "model.safetensors", content: new Blob([weights]) },
    { path: "notes/a.txt", content: new Blob(["alpha"]) },
    { path: "notes/b.txt", content: new Blob(["beta"]) },
  ],
});
seen.uploaded = uploaded.commit.oid;
const committed = await hub.commit({
  ...there,
  repo,
  useXet: false,
  title: "one more, one less",
  parentCommit: uploaded.commit.oid,
  operations: [
    { operation: "addOrUpdate", path: "README.md", content: new Blob(["---\nlicense: mit\n---\nhello\n"]) },
    { operation: "delete", path: "notes/a.txt" },
  ],
});
seen.committed = committed.commit.oid;
seen.stale = await refusal(() =>
  hub.deleteFile({ ...there, repo, path: "notes/b.txt", parentCommit: uploaded.commit.oid }),
);
seen.deleted = (await hub.deleteFile({ ...there, repo, path: "notes/b.txt" })).commit.oid;
seen.left = (await collect(hub.listFiles({ ...there, repo, recursive: true }))).map((file) => file.path);
await hub.createRepo({ ...there, repo: "tester/short-lived" });
await hub.deleteRepo({ ...there, repo: "tester/short-lived" });
seen.gone = await hub.repoExists({ ...there, repo: "tester/short-lived" });

process.stdout.write(JSON.stringify(seen));
