// A certified OpenID Connect provider, as a hospital has one, by TLS. Its one argument: a JSON file, see tests/oidc.py.
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import Provider from "oidc-provider";

const site = JSON.parse(readFileSync(process.argv[2], "utf8"));
const api = "overread-api"; // what access tokens are made for

const provider = new Provider(site.issuer, {
  jwks: site.jwks,
  clients: site.clients,
  enabledJWA: { idTokenSigningAlgValues: ["RS256", "PS256", "ES256"] },
  claims: { openid: ["sub"], profile: ["preferred_username", "groups"] },
  conformIdTokenClaims: site.claims_at_userinfo,
  pkce: { required: () => true },
  cookies: { keys: ["of the tests"] },
  findAccount: (_, id) =>
    site.accounts[id] && {
      accountId: id,
      claims: () => ({ sub: `id-of-${id}`, preferred_username: id, groups: site.accounts[id] }),
    },
  extraTokenClaims: () => ({ groups: ["radiology"] }),
  features: {
    devInteractions: { enabled: true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      getResourceServerInfo: () => ({
        scope: "",
        audience: api,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "ES256" } },
      }),
    },
  },
});

createServer({ cert: readFileSync(site.certificate), key: readFileSync(site.key) }, provider.callback()).listen(
  site.port,
  "127.0.0.1",
  () => console.log("listening"),
);
