// Airtable's own JavaScript client against the sandbox: does each thing once and prints what it saw as JSON.
// What it should have seen is judged by the test that runs it.
"use strict";

const Airtable = require("airtable");

const [endpointUrl, baseId, tableName] = process.argv.slice(2);
const options = { endpointUrl, noRetryIfRateLimited: true, requestTimeout: 20000 };
const table = new Airtable({ ...options, apiKey: process.env.AIRTABLE_API_KEY }).base(baseId)(tableName);
const stranger = new Airtable({ ...options, apiKey: "wrong" }).base(baseId)(tableName);

const runIds = (records) => records.map((record) => record.get("Run ID"));

async function refusal(attempt) {
  try {
    await attempt;
  } catch (error) {
    return { error: error.error, message: error.message, status: error.statusCode };
  }
  return null;
}

async function main() {
  const seen = {};
  const awkward = "it's \"a\" \\ run";

  const one = await table.create({ "Run ID": awkward, "Start Time": "2025-10-07T07:31:12Z" });
  seen.created = { id: one.id, fields: one.fields };
  const many = await table.create([{ fields: { "Run ID": "b", Status: "Running" } }, { fields: { "Run ID": "c" } }]);
  seen.createdMany = runIds(many);
  seen.typecast = (await table.create({ "Run ID": "d", Status: "Paused" }, { typecast: true })).get("Status");

  seen.found = (await table.find(one.id)).get("Run ID");
  const escaped = awkward.replace(/\\/g, "\\\\").replace(/'/g, "\\'");
  seen.filtered = runIds(await table.select({ filterByFormula: `{Run ID}='${escaped}'` }).firstPage());
  seen.byPost = runIds(
    await table.select({ filterByFormula: "{Status}!=''", fields: ["Run ID"], method: "post" }).all(),
  );

  seen.updated = (await table.update(many[0].id, { Status: "Failed" })).fields;
  seen.replaced = (await table.replace(many[0].id, { "Run ID": "b2" })).fields;
  seen.updatedMany = runIds(await table.update([{ id: many[1].id, fields: { "Run ID": "c2" } }]));
  const upserted = await table.update([{ fields: { "Run ID": "c2", "Client ID": "x" } }, { fields: { "Run ID": "e" } }], {
    performUpsert: { fieldsToMergeOn: ["Run ID"] },
  });
  seen.upserted = upserted.map((record) => [record.get("Run ID"), record.id === many[1].id]);

  seen.destroyed = (await table.destroy(one.id)).id === one.id;
  seen.destroyedMany = (await table.destroy([many[0].id, many[1].id])).length;

  seen.pages = [];
  seen.listed = [];
  await table
    .select({ sort: [{ field: "Total Posts Harvested", direction: "desc" }], filterByFormula: "{Client ID}='bulk'" })
    .eachPage((records, next) => {
      seen.pages.push(records.length);
      seen.listed.push(...runIds(records));
      next();
    });

  seen.refusals = {
    option: await refusal(table.create({ Status: "Nope" })),
    field: await refusal(table.create({ Nope: 1 })),
    computed: await refusal(table.create({ Duration: "1" })),
    formula: await refusal(table.select({ filterByFormula: "NOPE(" }).firstPage()),
    missing: await refusal(table.find(one.id)),
    eleven: await refusal(table.create(Array.from({ length: 11 }, () => ({ fields: {} })))),
    stranger: await refusal(stranger.find(one.id)),
  };
  console.log(JSON.stringify(seen));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
